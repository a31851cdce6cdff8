"""Checkpoints: weights in, a model in eval mode out, and never a line of code run from a file.

Ours are `.safetensors`: the tensors, and in the header the system, its configuration and a record
of where the weights come from, so that a file alone rebuilds its model. Published `.pkl` and
`.pth` files are read by PyTorch's restricted unpickler and translated by `weights.converters`.
Theirs may hold the tensors alone or nested in what a training saves, under names with or without
a wrapper's prefix; what stands beside nested tensors is the training's and is not read.
"""

import json
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save as serialise
from torch import Tensor, nn

from speechlab.config import from_dict, override, to_dict
from speechlab.errors import UserError
from speechlab.models import SYSTEMS
from speechlab.models.macs import n_params
from speechlab.storage import state as snapshots
from speechlab.storage.atomic import replacing, sha256
from speechlab.version import __version__
from speechlab.weights import hub
from speechlab.weights.converters import CONVERTERS, NAMED
from speechlab.weights.names import listed, recognise, unwrapped

HEADER = "speechlab"  # key of our JSON in the safetensors header
PUBLISHED = ("model_state_dict", "generator")  # state dicts of CleanUMamba; SEMamba, MP-SENet
NESTED = ("state_dict", "model", "model_state", "net", "network", "params", "weights")


def load(path: str | Path, system: str | None = None, **overrides: Any) -> nn.Module:
    """A model in eval mode from a checkpoint.

    path: our `.safetensors`, a run directory, a published file, or a published file's name where
    `speechlab weights` has it. system: for weights that do not tell, or a name they must fit.
    overrides: settings of the configuration to change, as `normalize="running"`.
    Raises UserError if the file is missing, unreadable, unsafe or does not fit.
    """
    path = locate(path)
    config, state = _read(path, system)
    config = override(config, **overrides)
    kind = next(kind for configuration, kind in SYSTEMS.values() if type(config) is configuration)
    try:
        with torch.device("meta"):  # sizes first: nothing is drawn, nothing absurd is allocated
            model = kind(config)
    except (UserError, RuntimeError) as error:
        raise UserError(f"{path}: its configuration builds no model: {error}") from error
    fill(model, state, path)
    return model.eval()


def save(path: str | Path, model: nn.Module, record: Mapping[str, Any] | None = None) -> Path:
    """Write model and configuration as `.safetensors`, whole or not at all.

    record: JSON types worth keeping with the weights, as their source, seed or git commit.
    """
    path = Path(path)
    system = next(name for name, (_, kind) in SYSTEMS.items() if type(model) is kind)
    header = {"system": system, "config": to_dict(model.config), "record": dict(record or {})}
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    try:
        with replacing(path) as part:
            part.write_bytes(serialise(tensors, {HEADER: json.dumps(header)}))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    return path


def import_checkpoint(
    source: str | Path, target: str | Path, system: str | None = None, **overrides: Any
) -> nn.Module:
    """Convert a published file to `target` (.safetensors) and its configuration as .json beside.

    overrides: as in `load`. The JSON is for people; the header of the .safetensors holds the same
    and is what is loaded.
    """
    source, target = locate(source), Path(target)
    if target.suffix != ".safetensors":
        raise UserError(f"{target}: the target must end in .safetensors")
    if target.exists() and target.samefile(source):
        raise UserError(f"{target}: is the source itself; name another target")
    model = load(source, system, **overrides)
    record = {"source": source.name, "sha256": sha256(source), "speechlab": __version__}
    record["n_params"] = n_params(model)
    save(target, model, record)
    readable = _readable({"config": to_dict(model.config), "record": record})
    with replacing(target.with_suffix(".json")) as part:
        part.write_text(readable + "\n")
    return model


def locate(path: str | Path) -> Path:
    """The checkpoint file that a path, a run directory or a published name stands for."""
    path = Path(path)
    if path.is_dir():
        return _in_directory(path)
    if path.is_file():
        return path
    names = {file.name.lower(): file.name for file in hub.published()}
    name = names.get(path.name.lower(), names.get(path.stem.lower()))
    if name is None or path.name != str(path):
        raise UserError(f"{path}: no such checkpoint; `speechlab weights list` has the published")
    found = hub.find(name)
    if found is None:
        raise UserError(f"{path}: not here yet; fetch it with `speechlab weights download {name}`")
    return found


def _readable(value: Any, indent: str = "") -> str:
    """JSON with a line per key, lists kept on theirs."""
    if not isinstance(value, Mapping):
        return json.dumps(value)
    inner = indent + "  "
    lines = (f"{inner}{json.dumps(k)}: {_readable(v, inner)}" for k, v in value.items())
    return "{\n" + ",\n".join(lines) + "\n" + indent + "}"


def _in_directory(path: Path) -> Path:
    best = path / "best.safetensors"
    found = [best] if best.is_file() else sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        held = f"{len(found)} .safetensors files" if found else "no .safetensors file"
        raise UserError(f"{path}: holds {held} and no best.safetensors; name the file itself")
    return found[0]


def _read(path: Path, system: str | None) -> tuple[Any, Mapping[str, Tensor]]:
    """Configuration, tensors under our names."""
    known = dict.fromkeys((*SYSTEMS, *CONVERTERS))
    if system is not None and system not in known:
        raise UserError(f"no system '{system}'; there are: {', '.join(known)}")
    if path.suffix == ".safetensors":
        state, header = _read_safetensors(path)
        if header:
            return _ours(path, state, header, system)
        published = {}
    else:
        state, published = read_pickle(path)
    state = unwrapped(state)
    system = system or _recognise(path, state)
    if system not in CONVERTERS:
        raise UserError(f"{path}: no weights of {system} are published; {_name_system(path)}")
    try:
        config, state = CONVERTERS[system](state, published)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return config, state


def _ours(
    path: Path, state: Mapping[str, Tensor], header: dict[str, Any], system: str | None
) -> tuple[Any, Mapping[str, Tensor]]:
    if not isinstance(header, dict) or not isinstance(header.get("config"), dict):
        raise UserError(f"{path}: its header holds no configuration; save it again")
    held = header.get("system")
    wanted, check = NAMED.get(system, (system, None))
    if wanted not in (None, held) or held not in SYSTEMS:
        raise UserError(f"{path}: holds a {held}, not a {system or 'known system'}")
    try:
        config = from_dict(SYSTEMS[held][0], header["config"])
        if check is not None:
            check(config)
        return config, state
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if snapshots.HEADER in metadata:
                best = path.with_name("best.safetensors")
                raise UserError(f"{path}: is the state of a training, no model; that is {best}")
            header = json.loads(metadata.get(HEADER, "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable .safetensors file ({error})") from error


def read_pickle(path: Path) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """Tensors and published configuration; a pickle that names anything to call is refused."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about a pickle's protocol; it is refused
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: {_refusal(str(error))}") from error
    except Exception as error:  # a broken file breaks the reader in many ways
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a readable checkpoint ({reason})") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, not named tensors")
    published = content.get("network_config")
    return _state_in(path, content), published if isinstance(published, Mapping) else {}


def _state_in(path: Path, content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict, nested one deep or bare.

    First comes what a name of PUBLISHED or NESTED holds, then what else is nested and recognised,
    then bare tensors, then whatever is nested. Bare numbers (`epoch`) beside nested tensors are the
    training's.
    """
    nested = {key: _tensors(value) for key, value in content.items() if isinstance(value, Mapping)}
    nested = {key: tensors for key, tensors in nested.items() if _has_weights(tensors)}
    bare = _tensors(content)
    found = [key for key in PUBLISHED if key in nested][:1]
    found = found or [key for key in NESTED if key in nested]
    found = found or [key for key, held in nested.items() if recognise(unwrapped(held))]
    found = found or ([] if _has_weights(bare) else list(nested))
    if len(found) > 1:
        advice = "save the model's alone"
        raise UserError(f"{path}: holds several state dicts ({listed(found, 9)}); {advice}")
    if found:
        return nested[found[0]]
    if not bare:
        keys = listed(content, 9) or "none"
        raise UserError(f"{path}: holds no named tensors; its keys: {keys}")
    return bare


def _tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {k: v for k, v in content.items() if isinstance(k, str) and _is_real(v)}


def _has_weights(tensors: Mapping[str, Tensor]) -> bool:
    """Whether any is more than a number."""
    return any(tensor.dim() for tensor in tensors.values())


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_complex()


def _refusal(error: str) -> str:
    wanted = re.search(r"GLOBAL ([\w.]+)|[Cc]lass ([\w.]+)|(?:instruction|opcode)\D*(\d+)", error)
    name = next((group for group in wanted.groups() if group), None) if wanted else None
    if name is None or name.isdigit():
        return "refused: not a checkpoint of plain tensors (its pickle cannot be read safely)"
    return f"refused: loading it would call {name}; only files of plain tensors are read"


def _recognise(path: Path, state: Mapping[str, Tensor]) -> str:
    if held := recognise(state):
        return held
    known = {file.system for file in hub.published() if file.name == path.stem}
    if len(known) == 1 and known <= set(CONVERTERS):
        return known.pop()
    if known:
        raise UserError(f"{path}: holds a {known.pop()}, which is not implemented here yet")
    names = f"its tensors are {listed(state)}"
    raise UserError(f"{path}: does not tell what it holds: {names}; {_name_system(path)}")


def _name_system(path: Path) -> str:
    told = f"`speechlab import {path} OUT.safetensors --system NAME`"
    return f"name its system in {told}, one of {', '.join(CONVERTERS)}"


def fill(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy tensors into the model; one line says what does not fit."""
    wanted = model.state_dict()
    missing = sorted(wanted.keys() - state.keys())
    excess = sorted(state.keys() - wanted.keys())
    misfit = [n for n in wanted if n in state and wanted[n].shape != state[n].shape]
    faults = {"lacks": missing, "has an unknown": excess, "has another size of": misfit}
    for what, names in faults.items():
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{path}: does not fit its configuration: {what} {names[0]}{more}")
    tensors = {name: state[name].to(wanted[name].dtype) for name in wanted}
    model.load_state_dict(tensors, assign=True)
