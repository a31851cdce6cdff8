"""Checkpoints made to mislead: one line, no allocation, also where a run or a list shows them."""

import json
import zipfile

import pytest
import torch
from safetensors.torch import save_file

import speechlab
from speechlab.config import to_dict
from speechlab.errors import UserError
from speechlab.models.cleanumamba import CONFIGS
from speechlab.training import runs
from tests.support.training_toys import tiny
from tests.weights.test_checkpoints import refuses

W = torch.ones(2, 2, 1)
ODD = {
    "meta": (lambda: W.to("meta"), "without numbers"),
    "sparse": (lambda: W.to_sparse(), r"sparse \(sparse_coo\)"),
    "rows": (lambda: W[..., 0].to_sparse_csr(), r"sparse \(sparse_csr\)"),
    "quantised": (lambda: torch.quantize_per_tensor(W, 0.1, 0, torch.qint8), "quantised"),
    "nested": (lambda: torch.nested.nested_tensor([W[0], W[0, :1]]), "nested"),
    "jagged": (lambda: torch.nested.nested_tensor([W[0], W[0]], layout=torch.jagged), "nested"),
    "expanded": (lambda: torch.ones(1).expand(10**6, 10**6), "repeats its numbers"),
    "shared": (lambda: torch.ones(50_000), "a file of .* does not hold them"),
}
DEEP = "[" * 10**5 + "]" * 10**5


@pytest.mark.filterwarnings("ignore")  # PyTorch: sparse, nested and quantised tensors may change
@pytest.mark.parametrize("kind", ODD)
def test_odd_tensors_are_named(tmp_path, kind):
    make, said = ODD[kind]
    names = ["tsfm_conv1.weight", *(f"encoder.0.{i}.weight" for i in range(5))]
    path = tmp_path / "odd.pkl"
    torch.save(dict.fromkeys(names, make()), path)
    refuses(path, rf"odd\.pkl: .*{said}")


def ours(path, header, **tensors):
    """A file of ours with this header, JSON or text."""
    text = header if isinstance(header, str) else json.dumps(header)
    save_file({**tiny().state_dict(), **tensors}, path, {"speechlab": text})
    return path


def test_whole_numbers_are_no_weights(tmp_path):
    header = {"system": "cleanumamba", "config": to_dict(tiny().config)}
    path = ours(tmp_path / "whole.safetensors", header)
    assert speechlab.load(path).config == tiny().config
    bias = torch.zeros(tiny().state_dict()["conv_in.bias"].shape, dtype=torch.int8)
    ours(path, header, **{"conv_in.bias": bias})
    refuses(path, r"whole or complex numbers in conv_in\.bias")


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (DEEP, "nested more than 50 levels"),
        (f'{{"system": "cleanumamba", "config": {{"layers": {DEEP}}}}}', "nested more than 50"),
        (f'{{"config": {{"layers": {"[" * 900}{"]" * 900}}}}}', "nested more than 50"),
        ({"system": [], "config": {}}, r"holds a \[\], not a known system"),
        ({"system": {"a": 1}, "config": {}}, "not a known system"),
        ({"system": "x" * 10**4, "config": {}}, "holds a x{23} … x{23}, not a known system"),
        ({"system": "cleanumamba", "config": {"kind": 1}}, "has no setting 'kind'"),
        ({"system": "cleanumamba", "config": {"d_model": 2**80}}, "d_model must be 1 to 65536"),
        ({"system": "cleanumamba", "config": {"sample_rate": 1}}, "sample_rate must be 1000 to"),
        ({"system": "cleanumamba", "config": {"layers": [{}] * 10**5}}, "layers must be 1 to 256"),
    ],
)
def test_hostile_headers_are_named(tmp_path, header, said):
    refuses(ours(tmp_path / "bad.safetensors", header), rf"bad\.safetensors.*{said}")


@pytest.mark.parametrize("header", [DEEP.encode(), b'{"a":' * 10**5 + b"1" + b"}" * 10**5])
def test_a_deep_header_of_safetensors_is_named(tmp_path, header):
    path = tmp_path / "deep.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    refuses(path, r"deep\.safetensors: not a readable")


def test_a_compressed_zip_is_refused_before_it_is_inflated(tmp_path, monkeypatch):
    """The sum of the members' sizes is compared with the file; nothing is read."""
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("inflated"))
    path = tmp_path / "bomb.pkl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for i in range(3):
            file.writestr(f"a/data/{i}", bytes(10**6))
    refuses(path, r"bomb\.pkl: a compressed zip, 3\.0 MB inflated")
    path.write_bytes(path.read_bytes()[:-30])
    refuses(path, r"bomb\.pkl: not a readable checkpoint")


@pytest.mark.parametrize("path", ["a" * 5000, "b/" * 2500, "c" * 5000 + ".safetensors", "a\0b"])
def test_a_path_of_any_length_is_one_line(path):
    refuses(path, r"File name too long|no such checkpoint")
    with pytest.raises(UserError, match=r"holds no run|File name too long|null byte"):
        runs.Run.open(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", DEEP),
        ("config.json", "[]"),
        ("config.json", '{"config": [], "data_hash": "", "created": ""}'),
        ("config.json", '{"config": {}, "data_hash": "", "created": 7}'),
        ("config.json", '{"config": {}, "data_hash": 1, "created": ""}'),
        ("config.json", '{"config": {}, "data_hash": "", "created": "", "training": [1]}'),
        ("best.json", DEEP),
        ("best.json", "[1]"),
        ("last.safetensors", "\xff" * 20),
        ("last.safetensors", "\x10" + "\0" * 7 + "[]              "),
    ],
)
def test_a_hostile_run_is_listed_as_damaged(tmp_path, name, content):
    run = runs.Run.create(tmp_path / "a", {"model": "tiny"})
    runs.Run.create(tmp_path / "b", {"model": "tiny"})
    (run.folder / name).write_text(content, encoding="latin-1")
    rows = {row["run"]: row["state"] for row in runs.listing(tmp_path)}
    assert rows["a"].startswith("damaged: ") and rows["b"] == "unfinished"
    assert rows["a"].isprintable()


def test_published_sizes_are_in_range():
    for config in CONFIGS.values():
        speechlab.config.check(config)
