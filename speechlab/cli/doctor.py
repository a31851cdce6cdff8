"""doctor: versions, devices, and which scan kernels run here, with the reasons."""

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError, version

from speechlab.errors import UserError
from speechlab.version import __version__

PACKAGES = (
    *("torch", "numpy", "scipy", "numba", "mamba-ssm", "causal-conv1d", "soundfile", "soxr"),
    *("pesq", "pystoi", "fast-bss-eval", "pandas", "matplotlib", "papermill", "gradio"),
)


def report() -> str:
    """The report as text, for a user or a bug report."""
    lines = [f"speechlab {__version__}, Python {platform.python_version()}"]
    lines += [f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors", ""]
    lines += _table("devices", _devices())
    lines += _table("selective scan", _kernels())
    lines += _table("packages", {name: _version(name) for name in PACKAGES})
    lines += _table("published weights", _weights())
    return "\n".join(lines).rstrip()


def _devices() -> dict[str, str]:
    import torch

    devices = {"cpu": f"{torch.get_num_threads()} PyTorch threads"}
    if torch.cuda.is_available():
        names = (torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return devices | {"cuda": ", ".join(names)}
    built = torch.version.cuda
    return devices | {"cuda": "no device found" if built else "PyTorch was built without CUDA"}


def _kernels() -> dict[str, str]:
    """Status of each backend; the default one of each device is marked."""
    import torch

    from speechlab.layers.scan import backend_status, default_backend

    status = backend_status()
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        chosen = default_backend(device, torch.float32)
        status[chosen] = f"{status.get(chosen, 'unknown')}  <- in use on {device}"
    forced = os.environ.get("SPEECHLAB_SCAN")
    return status | ({"SPEECHLAB_SCAN": f"{forced}, set by the user"} if forced else {})


def _weights() -> dict[str, str]:
    from speechlab.weights import hub

    files = hub.published("cleanumamba")
    try:
        here = sum(hub.find(file.name) is not None for file in files)
        folder = hub.offline_folder() or hub.cache_folder()
    except UserError as error:
        return {"cleanumamba": str(error)}
    return {"cleanumamba": f"{here} of {len(files)} files in {folder}"}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _table(title: str, rows: dict[str, str]) -> list[str]:
    width = max(map(len, rows)) + 2
    return [f"{title}:", *(f"  {name:<{width}}{value}" for name, value in rows.items()), ""]


def add(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "doctor", help="show versions, devices, and which scan kernels run and why"
    )
    command.set_defaults(run=lambda options: print(report()))
