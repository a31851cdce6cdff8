"""Nested tensors and numbers in one safetensors file, without pickle.

A state is nested dicts and lists of tensors and JSON values. The name of a tensor is its path in
the nesting; the JSON in the header has the same nesting, with {"tensor": name} in its place. The
header also has the SHA-256 of the content; files of version 0.1 have none.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechlab.errors import UserError, reason

if TYPE_CHECKING:  # `values` reads the JSON alone, without the import of torch
    from torch import Tensor

HEADER = "speechlab_state"  # key of our JSON in the safetensors header
DIGEST = "speechlab_sha256"  # key of the digest there
DEEPEST = 50  # levels of a JSON text
TOO_DEEP = f"it is nested more than {DEEPEST} levels deep"


def to_bytes(state: dict[str, Any]) -> bytes:
    """The state as the content of a file. TypeError for a value that is neither tensor nor JSON."""
    from safetensors.torch import save as serialise

    tensors: dict[str, Tensor] = {}
    outline = _taken_out(state, "", tensors)
    return _signed(serialise(tensors, {HEADER: json.dumps(outline)}))


def from_bytes(content: bytes, path: Path) -> dict[str, Any]:
    """The state in the content of the file `path`. UserError if it is damaged."""
    import safetensors
    from safetensors.torch import load as deserialise

    try:
        outline = _outline(content)
        _verify(content)
        return _put_back(outline, deserialise(content))
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(_damage(path, reason(error))) from error


def read(path: Path) -> bytes:
    """The content of the file. UserError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(_damage(path, reason(error))) from error


def values(path: Path) -> dict[str, Any]:
    """The state without its tensors, from the file's header. UserError if it is damaged."""
    try:
        with path.open("rb") as file:
            length = file.read(8)
            n_bytes = min(int.from_bytes(length, "little"), path.stat().st_size)
            return _outline(length + file.read(n_bytes))
    except (OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError) as error:
        raise UserError(_damage(path, reason(error))) from error


def parsed(text: str | bytes) -> Any:
    """The value of a JSON text of unknown origin. ValueError; also where it is nested too deep."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return value
    raise ValueError(TOO_DEEP)


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _signed(content: bytes) -> bytes:
    """The file with its digest in the header."""
    header, tensors = _parts(content)
    header["__metadata__"][DIGEST] = _digest(header, tensors)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, tensors))


def _verify(content: bytes) -> None:
    """ValueError where the content is not that of the digest in its header."""
    header, tensors = _parts(content)
    digest = header["__metadata__"].get(DIGEST)
    if digest not in (None, _digest(header, tensors)):
        raise ValueError("its content has changed: the digest in its header differs")


def _digest(header: dict[str, Any], tensors: memoryview) -> str:
    known = {k: v for k, v in header["__metadata__"].items() if k != DIGEST}
    text = json.dumps({**header, "__metadata__": known}, sort_keys=True)
    digest = hashlib.sha256(text.encode())
    digest.update(tensors)
    return digest.hexdigest()


def _parts(content: bytes) -> tuple[dict[str, Any], memoryview]:
    """The header, and the bytes of the tensors."""
    end = 8 + int.from_bytes(content[:8], "little")
    return parsed(content[8:end]), memoryview(content)[end:]


def _outline(content: bytes) -> dict[str, Any]:
    outline = parsed(_parts(content)[0]["__metadata__"][HEADER])
    if not isinstance(outline, dict):
        raise ValueError("it holds no state")
    return outline


def _damage(path: Path, fault: str) -> str:
    return (
        f"{path}: not a readable training state ({fault}); put a copy of it back, or remove it to "
        "begin this run again"
    )


def _taken_out(value: Any, name: str, tensors: dict[str, "Tensor"]) -> Any:
    from torch import Tensor

    if isinstance(value, Tensor):
        # a copy: tied weights and views share memory, which safetensors refuses
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {"tensor": name}
    below = f"{name}." if name else ""
    if isinstance(value, dict):
        return {str(k): _taken_out(v, f"{below}{k}", tensors) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_taken_out(item, f"{below}{i}", tensors) for i, item in enumerate(value)]
    return value


def _put_back(outline: Any, tensors: dict[str, "Tensor"]) -> Any:
    if isinstance(outline, dict):
        if outline.keys() == {"tensor"} and isinstance(outline["tensor"], str):
            return tensors[outline["tensor"]]
        return {key: _put_back(value, tensors) for key, value in outline.items()}
    return [_put_back(item, tensors) for item in outline] if isinstance(outline, list) else outline
