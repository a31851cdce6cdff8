"""Mutated checkpoints and training states: each opens and runs, or is refused in one line."""

import io
import json
import pickletools
import re
import tempfile
import warnings
import zipfile
from functools import cache
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

import speechlab
from speechlab.storage import state as snapshots
from speechlab.weights.checkpoints import save
from tests.fuzz.mutate import any_bytes, any_json, any_number, any_text, survey
from tests.support.training_toys import plain, tiny

PUBLISHED = (  # our names -> published ones
    (r"^conv_in\.", "tsfm_conv1."),
    (r"^conv_out\.", "tsfm_conv2."),
    (r"^bottleneck\.norm_out\.", "norm_f."),
    (r"^bottleneck\.layers\.", "tsfm_Mamba_layers."),
    (r"^encoder\.(\d+)\.down\.", r"encoder.\1.0."),
    (r"^encoder\.(\d+)\.mix\.", r"encoder.\1.2."),
    (r"^decoder\.(\d+)\.mix\.", r"decoder.\1.0."),
    (r"^decoder\.(\d+)\.up\.", r"decoder.\1.2."),
)
DTYPES = (torch.float64, torch.float16, torch.int8, torch.bool, torch.complex64, torch.uint16)


def tried(random: Random, folder: Path) -> str:
    """A mutated file of a random kind, read as the program reads it; a model is run."""
    name = random.choice([*KINDS])
    path = folder / f"case{Path(name).suffix}"
    path.write_bytes(KINDS[name](random))
    warnings.simplefilter("ignore")
    if name == "state.safetensors":
        snapshots.values(path)
        snapshots.from_bytes(snapshots.read(path), path)
        return f"opened: {name}"
    model = speechlab.load(path, random.choice((None, None, "cleanumamba")))
    with torch.inference_mode():
        assert model(torch.zeros(1, 1, 64)).shape == (1, 1, 64)
    return f"opened: {name}"


def test_checkpoints(tmp_path):
    outcomes = survey(tried, tmp_path, short=150, full=2000)
    opened = sum(n for outcome, n in outcomes.items() if outcome.startswith("opened"))
    assert opened > outcomes.total() / 20  # the mutations are not all fatal


@cache
def ours() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return save(Path(folder) / "ours.safetensors", tiny()).read_bytes()


@cache
def training_state() -> bytes:
    return snapshots.to_bytes({"step": 3, "ended": "", "objective": plain().state_dict()})


def published() -> dict[str, Tensor]:
    """The tensors of the toy under their published names."""
    state = {}
    for name, tensor in tiny().state_dict().items():
        for ours, theirs in PUBLISHED:
            name = re.sub(ours, theirs, name)
        state[name] = tensor
    return state


def pickled(content: Any, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


@cache
def plain_pickle(legacy: bool) -> bytes:
    return pickled({"model_state_dict": published(), "network_config": {"stride": 2}}, legacy)


def changed_header(content: bytes, key: str, random: Random) -> bytes:
    """A safetensors file with a change in its JSON, or in ours inside it; its lengths are right."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    if random.random() < 0.7:
        inner = json.loads(header["__metadata__"][key])
        header["__metadata__"][key] = json.dumps(any_json(inner, random))
    else:
        header = any_json(header, random)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + content[end:]


def changed_opcodes(pickle: bytes, random: Random) -> bytes:
    """A pickle with an opcode left out, doubled, exchanged, or with another argument."""
    places = [place for _, _, place in pickletools.genops(pickle)] + [len(pickle)]
    spans = [pickle[a:b] for a, b in pairwise(places)]
    i, j = random.randrange(len(spans)), random.randrange(len(spans))
    how = random.choice(("out", "double", "exchange", "argument", "argument", "argument"))
    if how == "out":
        del spans[i]
    elif how == "double":
        spans.insert(i, spans[i])
    elif how == "exchange":
        spans[i], spans[j] = spans[j], spans[i]
    elif len(spans[i]) > 1:
        spans[i] = spans[i][:1] + any_bytes(spans[i][1:], random)[: len(spans[i]) - 1]
    return b"".join(spans)


def changed_zip(random: Random) -> bytes:
    """A zip of torch.save with a changed pickle or record, packed again, at times compressed."""
    with zipfile.ZipFile(io.BytesIO(plain_pickle(False))) as file:
        members = {name: file.read(name) for name in file.namelist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    if random.random() < 0.3:
        name = random.choice([*members])
        members[name] = any_bytes(members[name], random)
    else:
        members[name] = changed_opcodes(members[name], random)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", random.choice((0, 0, 0, zipfile.ZIP_DEFLATED))) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return packed.getvalue()


def changed_directory(random: Random) -> bytes:
    """A zip of torch.save with a change in its central directory."""
    content = plain_pickle(False)
    start = content.index(b"PK\x01\x02")
    return content[:start] + any_bytes(content[start:], random)


def changed_state(random: Random) -> bytes:
    """A well-formed file whose tensors or names are others than published."""
    state = published()
    name = random.choice([*state])
    state[name] = odd(state[name], random)
    if random.random() < 0.3:
        state[any_text(random)] = state.pop(name)
    options = {"stride": any_number(random), "normalize": any_text(random)}
    layout = random.choice(("model_state_dict", "state_dict", "generator", "a"))
    return pickled({layout: state, "network_config": options, "epoch": 3}, random.random() < 0.3)


def odd(tensor: Tensor, random: Random) -> Tensor:
    return random.choice(
        (
            lambda: tensor.to(random.choice(DTYPES)),
            lambda: tensor.to("meta"),
            lambda: tensor.to_sparse(),
            lambda: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
            lambda: tensor.flatten()[:1].expand(tensor.shape),
            lambda: tensor.flatten()[:1].expand(10**5, 10**5),
            lambda: tensor.flatten(),
            lambda: tensor[None],
            lambda: tensor[:0],
            lambda: tensor.T if tensor.dim() == 2 else tensor,
            lambda: tensor * torch.nan,
        )
    )()


def changed_legacy(random: Random) -> bytes:
    """The last of the five pickles of a legacy file holds the tensors' outline."""
    content = plain_pickle(True)
    parts, file = [], io.BytesIO(content)
    for _ in range(4):
        begin = file.tell()
        for _ in pickletools.genops(file):
            pass
        parts.append(content[begin : file.tell()])
    rest, i = content[file.tell() :], random.randrange(4)
    parts[i] = changed_opcodes(parts[i], random)
    return b"".join(parts) + rest


KINDS = {
    "header.safetensors": lambda random: changed_header(ours(), "speechlab", random),
    "bytes.safetensors": lambda random: any_bytes(ours(), random),
    "state.safetensors": lambda random: changed_header(training_state(), "speechlab_state", random),
    "opcodes.pkl": changed_zip,
    "directory.pth": changed_directory,
    "tensors.pt": changed_state,
    "bytes.ckpt": lambda random: any_bytes(plain_pickle(random.random() < 0.5), random),
    "legacy.pkl": changed_legacy,
}
