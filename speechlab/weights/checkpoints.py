"""Checkpoints: load, save and import weights without executing code from a file.

Our files are `.safetensors`: the tensors, and in the header the system, its configuration and the
source of the weights. So a file alone rebuilds its model. Published `.pkl` and `.pth` files are
read by PyTorch's restricted unpickler and converted by `weights.converters`. Their tensors may be
nested in the state of a training and may have the name prefix of a wrapper.
"""

import json
import os
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save as serialise
from torch import Tensor, nn

from speechlab.config import from_dict, override, to_dict
from speechlab.errors import UserError, shown, unknown
from speechlab.models import SYSTEMS
from speechlab.models.macs import n_params
from speechlab.storage import state as snapshots
from speechlab.storage.atomic import sha256, write
from speechlab.version import __version__
from speechlab.weights import hub
from speechlab.weights.converters import CONVERTERS, NAMED
from speechlab.weights.hub import locate
from speechlab.weights.names import listed, recognise, unwrapped

HEADER = "speechlab"  # key of our JSON in the safetensors header
PUBLISHED = ("model_state_dict", "generator")  # state dicts of CleanUMamba; SEMamba and MP-SENet
ZIP = b"PK\x03\x04"  # first bytes, by which torch.load too knows a zip
MOST_SHARED = 2  # times the size of its file that tensors may have: some share their numbers
NESTED = ("state_dict", "model", "model_state", "net", "network", "params", "weights")


def load(path: str | Path, system: str | None = None, **overrides: Any) -> nn.Module:
    """A model in eval mode from a checkpoint.

    path: our `.safetensors`, a run directory, a published file, or a name for `hub.locate`.
    system: required if the tensor names do not identify the system; else it must match.
    overrides: settings of the configuration to change, e.g. `normalize="running"`.
    Raises UserError if the file is missing, unreadable, unsafe or does not fit.
    """
    path = locate(path)
    config, state = _read(path, system)
    config = override(config, **overrides)
    kind = next(kind for configuration, kind in SYSTEMS.values() if type(config) is configuration)
    try:
        with torch.device("meta"):  # sizes only: no random draws, no memory for absurd sizes
            model = kind(config)
    except (UserError, RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: its configuration builds no model: {error}") from error
    fill(model, state, path)
    return model.eval()


def save(path: str | Path, model: nn.Module, record: Mapping[str, Any] | None = None) -> Path:
    """Write model and configuration as `.safetensors`, atomically.

    record: JSON types to store with the weights, e.g. their source, seed or git commit.
    """
    path = Path(path)
    write(path, _content(model, record or {}))
    return path


def _content(model: nn.Module, record: Mapping[str, Any]) -> bytes:
    """A model and its configuration as `.safetensors`."""
    system = next(name for name, (_, kind) in SYSTEMS.items() if type(model) is kind)
    header = {"system": system, "config": to_dict(model.config), "record": dict(record)}
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    return serialise(tensors, {HEADER: json.dumps(header)})


def import_checkpoint(
    source: str | Path, target: str | Path, system: str | None = None, **overrides: Any
) -> nn.Module:
    """Convert a published file to `target` (.safetensors); write its configuration beside as .json.

    overrides: as in `load`. `load` reads the header of the .safetensors; the JSON is for people.
    UserError where one of the two files exists with other content.
    """
    source, target = locate(source), Path(target)
    if target.suffix != ".safetensors":
        raise UserError(f"{target}: the target must end in .safetensors")
    if target.exists() and target.samefile(source):
        raise UserError(f"{target}: is the source itself; choose another target")
    model = load(source, system, **overrides)
    record = {"source": source.name, "sha256": sha256(source), "speechlab": __version__}
    record["n_params"] = n_params(model)
    readable = _readable({"config": to_dict(model.config), "record": record}) + "\n"
    made = {target: _content(model, record), target.with_suffix(".json"): readable.encode()}
    for path, content in made.items():
        if os.path.lexists(path) and not (path.is_file() and path.read_bytes() == content):
            raise UserError(f"{path}: exists with other content; choose another target")
    for path, content in made.items():
        write(path, content)
    return model


def _readable(value: Any, indent: str = "") -> str:
    """JSON with one line per key, also for lists."""
    if not isinstance(value, Mapping):
        return json.dumps(value)
    inner = indent + "  "
    lines = (f"{inner}{json.dumps(k)}: {_readable(v, inner)}" for k, v in value.items())
    return "{\n" + ",\n".join(lines) + "\n" + indent + "}"


def _read(path: Path, system: str | None) -> tuple[Any, Mapping[str, Tensor]]:
    """Configuration, tensors under our names. system: one of SYSTEMS, CONVERTERS or NAMED."""
    known = dict.fromkeys((*SYSTEMS, *CONVERTERS, *NAMED))
    if system not in (None, *known):
        raise unknown("system", system, known)
    header, published = None, {}
    if path.suffix == ".safetensors":
        state, header = _read_safetensors(path)
    else:
        state, published = read_pickle(path)
    kind, check = NAMED.get(system, (system, None))
    try:
        if header:
            config = _configuration(header, kind)
        else:
            state = unwrapped(state)
            kind = kind or _recognise(path, state)
            if kind not in CONVERTERS:
                raise UserError(f"no weights of {kind} are published; {_name_system(path)}")
            config, state = CONVERTERS[kind](state, published)
        if check is not None:
            check(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return config, state


def _configuration(header: Any, system: str | None) -> Any:
    """The configuration in the header of one of our files; UserError for another system's."""
    if not isinstance(header, dict) or not isinstance(header.get("config"), dict):
        raise UserError("no configuration in its header; save it again")
    held = header.get("system")
    if not isinstance(held, str) or held not in SYSTEMS or system not in (None, held):
        raise UserError(f"holds a {shown(held, 50)}, not a {system or 'known system'}")
    return from_dict(SYSTEMS[held][0], header["config"])


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if snapshots.HEADER in metadata:
                best = path.with_name("best.safetensors")
                raise UserError(f"{path}: is the state of a training; the model is {best}")
            header = snapshots.parsed(metadata.get(HEADER, "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a readable .safetensors file ({error})") from error


def read_pickle(path: Path) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """Tensors and published configuration; UserError for a pickle that would call anything."""
    _refuse_compressed(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about the protocol of a pickle
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: {_refusal(str(error))}") from error
    except Exception as error:  # a broken file raises many types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a readable checkpoint ({reason})") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, not named tensors")
    published = content.get("network_config")
    state = _state_in(path, content)
    _refuse_odd(path, state)
    return state, published if isinstance(published, Mapping) else {}


def _refuse_compressed(path: Path) -> None:
    """UserError for a zip whose members are larger than the file: torch would inflate them."""
    try:
        with path.open("rb") as content:
            if content.read(len(ZIP)) != ZIP:
                return
        with zipfile.ZipFile(path) as file:
            n_bytes = sum(member.file_size for member in file.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise UserError(f"{path}: not a readable checkpoint ({error})") from error
    if n_bytes > path.stat().st_size:
        raise UserError(
            f"{path}: a compressed zip, {n_bytes / 1e6:.1f} MB inflated; save it with torch.save"
        )


def _refuse_odd(path: Path, state: Mapping[str, Tensor]) -> None:
    """UserError for tensors that do not hold their numbers one by one, or more than the file."""
    for name, tensor in state.items():
        if fault := _oddity(tensor):
            raise UserError(
                f"{path}: {shown(name, 100)} is {fault}; save plain tensors of numbers, "
                "as model.state_dict() has them"
            )
    n_bytes, most = sum(map(_n_bytes, state.values())), MOST_SHARED * path.stat().st_size
    if n_bytes > most:
        raise UserError(
            f"{path}: its tensors ask for {n_bytes / 1e6:.1f} MB, a file of "
            f"{most / MOST_SHARED / 1e6:.1f} MB does not hold them"
        )


def _oddity(tensor: Tensor) -> str:
    """What makes it no plain tensor in memory, or ""."""
    if tensor.is_meta:
        return "without numbers (meta)"
    if tensor.is_nested:
        return "nested"
    if tensor.layout is not torch.strided:
        return f"sparse ({str(tensor.layout).removeprefix('torch.')})"
    if tensor.is_quantized:
        return f"quantised ({str(tensor.dtype).removeprefix('torch.')})"
    held = tensor.untyped_storage().nbytes()
    return "a view that repeats its numbers" if _n_bytes(tensor) > held else ""


def _n_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _state_in(path: Path, content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict, bare or nested one level deep.

    In order of preference: the value of a key of PUBLISHED or NESTED, another nested state dict of
    a known system, bare tensors, any nested state dict. Bare numbers (`epoch`) do not count.
    """
    nested = {key: _tensors(value) for key, value in content.items() if isinstance(value, Mapping)}
    nested = {key: tensors for key, tensors in nested.items() if _has_weights(tensors)}
    bare = _tensors(content)
    found = [key for key in PUBLISHED if key in nested][:1]
    found = found or [key for key in NESTED if key in nested]
    found = found or [key for key, held in nested.items() if recognise(unwrapped(held))]
    found = found or ([] if _has_weights(bare) else list(nested))
    if len(found) > 1:
        keys = listed(found, 9)
        raise UserError(f"{path}: holds several state dicts ({keys}); save the model's alone")
    if found:
        return nested[found[0]]
    if not bare:
        keys = listed(content, 9) or "none"
        raise UserError(f"{path}: holds no named tensors; its keys: {keys}")
    return bare


def _tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The named real tensors."""
    named = ((k, v) for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor))
    return {name: tensor for name, tensor in named if not tensor.is_complex()}


def _has_weights(tensors: Mapping[str, Tensor]) -> bool:
    """Whether any tensor has a dimension: a lone number is a counter of a training."""
    return any(tensor.dim() for tensor in tensors.values())


def _refusal(error: str) -> str:
    wanted = re.search(r"GLOBAL ([\w.]+)|[Cc]lass ([\w.]+)|(?:instruction|opcode)\D*(\d+)", error)
    name = next((group for group in wanted.groups() if group), None) if wanted else None
    if name is None or name.isdigit():
        return "refused: not a checkpoint of plain tensors (its pickle cannot be read safely)"
    return f"refused: loading it would call {name}; only files of plain tensors are read"


def _recognise(path: Path, state: Mapping[str, Tensor]) -> str:
    """The system of published tensors, by their names, else by the name of the file."""
    found = recognise(state)
    found = found or next((file.system for file in hub.published() if file.name == path.stem), None)
    if found is None:
        names = f"its tensors are {listed(state)}"
        raise UserError(f"unknown system: {names}; {_name_system(path)}")
    return found


def _name_system(path: Path) -> str:
    command = f"`speechlab import {path} OUT.safetensors --system NAME`"
    return f"name its system in {command}, one of {', '.join((*CONVERTERS, *NAMED))}"


def fill(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy tensors into the model; UserError names the first misfit."""
    wanted = model.state_dict()
    missing = sorted(wanted.keys() - state.keys())
    excess = sorted(state.keys() - wanted.keys())
    both = [name for name in wanted if name in state]
    misfit = [name for name in both if wanted[name].shape != state[name].shape]
    no_real = [name for name in both if _is_real(wanted[name]) and not _is_real(state[name])]
    faults = {"lacks": missing, "has an unknown": excess, "has another size of": misfit}
    faults["has whole or complex numbers in"] = no_real
    for what, names in faults.items():
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{path}: does not fit its configuration: {what} {names[0]}{more}")
    tensors = {name: state[name].to(wanted[name].dtype) for name in wanted}
    model.load_state_dict(tensors, assign=True)


def _is_real(tensor: Tensor) -> bool:
    return tensor.is_floating_point()
