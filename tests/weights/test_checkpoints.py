"""Checkpoints: the same output in each format, no code run from a file, one-line errors."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

import speechlab
from speechlab.config import override, to_dict
from speechlab.errors import UserError
from speechlab.models.cleanumamba import CONFIGS, CleanUMamba
from speechlab.weights.checkpoints import import_checkpoint, save

ABLATION = ["Mamba", "Mamba2", "MambaS4", "LSTM", "MHA"]


class Malicious:
    def __reduce__(self):
        return os.system, ("touch hacked",)


def refuses(path, said, system=None):
    """`load` raises a UserError of one line."""
    with pytest.raises(UserError, match=said) as error:
        speechlab.load(path, system)
    assert "\n" not in str(error.value)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CleanUMamba(override(CONFIGS["ablation"], normalize="none")).eval()


@pytest.fixture
def checkpoint(model, tmp_path):
    return save(tmp_path / "run" / "best.safetensors", model, {"seed": 0})


def test_save_and_load(model, checkpoint):
    """A file alone rebuilds its model; so does its run directory."""
    noisy = torch.randn(1, 1, 2000)
    for path in (checkpoint, checkpoint.parent, str(checkpoint)):
        loaded = speechlab.load(path)
        assert loaded.config == model.config and not loaded.training
        assert torch.equal(loaded(noisy), model(noisy))
    assert [file.name for file in checkpoint.parent.iterdir()] == ["best.safetensors"]


def test_overrides_are_deltas(checkpoint):
    assert speechlab.load(checkpoint, normalize="running").look_ahead == 765
    with pytest.raises(UserError, match="no setting 'normalise'"):
        speechlab.load(checkpoint, normalise="running")


def test_a_leak_is_kept_and_off_where_it_is_not_named(model, checkpoint, tmp_path):
    """Also in a file of before, whose header has no such setting."""
    leaky = speechlab.load(checkpoint, state_leak_s=10)
    assert speechlab.load(save(tmp_path / "leaky.safetensors", leaky)).config.state_leak_s == 10
    header = {"system": "cleanumamba", "config": to_dict(model.config), "record": {}}
    del header["config"]["state_leak_s"]
    save_file(model.state_dict(), tmp_path / "old.safetensors", {"speechlab": json.dumps(header)})
    old, noisy = speechlab.load(tmp_path / "old.safetensors"), torch.randn(1, 1, 2000)
    assert old.config == model.config and torch.equal(old(noisy), model(noisy))
    assert not torch.equal(leaky(noisy), model(noisy))


@pytest.mark.parametrize("mixer", ABLATION)
def test_import_keeps_the_numbers(shared, tmp_path, mixer):
    """Published file -> ours -> the same output, bit for bit, with the configuration as JSON."""
    source = shared / f"upstream_checkpoints/cleanumamba/Experiment_CleanU_{mixer}.pkl"
    target = tmp_path / "model.safetensors"
    import_checkpoint(source, target)
    direct, ours = speechlab.load(source), speechlab.load(target)
    noisy = torch.randn(1, 1, 3000)
    assert torch.equal(direct(noisy), ours(noisy))
    readable = json.loads(target.with_suffix(".json").read_text())
    assert readable["config"] == json.loads(json.dumps(to_dict(ours.config)))
    assert readable["record"]["source"] == source.name


def test_pruned_widths_are_read_off_the_tensors(shared):
    """The sizes of E8-500K, whose file has the configuration of its parent."""
    folder = shared / "upstream_checkpoints/cleanumamba"
    config = speechlab.load(folder / "CleanUMamba-3N-E8_pruned-500K.pkl").config
    assert config.down_channels == (56, 74, 32, 35, 41, 66, 51, 61)
    assert config.skip_channels == (53, 111, 96, 102, 87, 107, 105, 85)
    assert config.up_channels == (63, 107, 43, 59, 52, 52, 38, 54)
    sizes = [(layer["d_inner"], layer["d_state"], layer["dt_rank"]) for layer in config.layers]
    assert (config.d_model, sizes) == (114, [(8, 8, 32), (8, 8, 32), (48, 8, 32)])


def test_published_names_in_safetensors(shared, tmp_path):
    """Published tensors load under their own names without a pickle."""
    source = shared / "upstream_checkpoints/cleanumamba/Experiment_CleanU_Mamba.pkl"
    state = torch.load(source, map_location="cpu", weights_only=True)["model_state_dict"]
    path = tmp_path / "published.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    noisy = torch.randn(1, 1, 3000)
    assert torch.equal(speechlab.load(path, "cleanumamba")(noisy), speechlab.load(source)(noisy))


def test_a_published_name_loads_its_local_file(shared, monkeypatch):
    monkeypatch.setenv("SPEECHLAB_WEIGHTS", str(shared / "upstream_checkpoints"))
    for name in ("Experiment_CleanU_LSTM", "experiment_cleanu_lstm.pkl"):
        assert speechlab.load(name).config.mixer == "lstm"


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_code_in_a_pickle_is_refused_unrun(tmp_path, monkeypatch, how, protocol):
    monkeypatch.chdir(tmp_path)
    path, content = tmp_path / "evil.pkl", {"model_state_dict": {"a": Malicious()}}
    if how == "torch":
        torch.save(content, path, pickle_protocol=protocol)
    else:
        path.write_bytes(pickle.dumps(content, protocol))
    refuses(path, r"evil\.pkl: refused: .*")
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"", "empty.pkl"),
        (b"\x00" * 100, "zeros.pth"),
        (b"PK\x03\x04 truncated archive", "cut.pkl"),
        (b"", "empty.safetensors"),
        (b"\xff" * 64, "garbage.safetensors"),
        (b"not a checkpoint at all", "text.pkl"),
    ],
)
def test_broken_files_are_named_in_one_line(tmp_path, content, name):
    path = tmp_path / name
    path.write_bytes(content)
    refuses(path, name)


@pytest.mark.parametrize(
    "header",
    [
        *('"x"', "[1]", "{}", '{"config": []}', '{"config": {}}', "no json"),
        '{"system": "cleanumamba"}',
        '{"system": "cleanumamba", "config": {"layers": [{"zz": 1}]}}',
        '{"system": "cleanumamba", "config": {"d_model": 1000000000000}}',
        '{"system": "cleanumamba", "config": {"kernel": 4}}',
    ],
)
def test_a_bad_header_is_named_in_one_line(tmp_path, header):
    path = tmp_path / "bad.safetensors"
    save_file({"x": torch.zeros(1)}, path, {"speechlab": header})
    refuses(path, r"bad\.safetensors")


@pytest.mark.parametrize(
    "content",
    [
        {1: torch.zeros(2)},
        {"tsfm_conv1.weight": torch.zeros(3, 3, 1, dtype=torch.complex64)},
        {"tsfm_conv1.weight": torch.zeros(()), "encoder.0.0.weight": torch.zeros(3)},
        [torch.zeros(3)],
        "text",
    ],
)
def test_odd_content_is_named_in_one_line(tmp_path, content):
    path = tmp_path / "odd.pkl"
    torch.save(content, path)
    for system in (None, "cleanumamba"):
        refuses(path, r"odd\.pkl", system)


def test_a_flipped_byte_loads_or_is_named(model, tmp_path):
    """Damage anywhere gives one line, never another exception."""
    state = {"tsfm_conv1.weight": torch.zeros(2, 2, 1), "encoder.0.0.weight": torch.zeros(2, 1, 4)}
    path = tmp_path / "damaged.pkl"
    for legacy in (True, False):
        torch.save(state, path, _use_new_zipfile_serialization=not legacy)
        content = path.read_bytes()
        for position in range(0, len(content), len(content) // 60):
            flipped = bytes([content[position] ^ 0xFF])
            path.write_bytes(content[:position] + flipped + content[position + 1 :])
            with pytest.raises(UserError):
                speechlab.load(path)


def test_loading_draws_no_random_number_and_can_be_trained(checkpoint):
    before = torch.get_rng_state()
    loaded = speechlab.load(checkpoint)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_what_cannot_be_written_is_named(model, checkpoint):
    with pytest.raises(UserError, match="cannot be written"):
        save("/proc/nowhere/model.safetensors", model)
    with pytest.raises(UserError, match="is the source itself"):
        import_checkpoint(checkpoint, checkpoint)


def test_an_import_replaces_no_other_file(model, checkpoint, tmp_path):
    """The same import again is fine."""
    target = tmp_path / "ours.safetensors"
    for _ in range(2):
        import_checkpoint(checkpoint, target)
    for path in (target, target.with_suffix(".json")):
        before = path.read_bytes()
        path.write_bytes(b"mine")
        with pytest.raises(UserError, match="exists with other content; choose another target"):
            import_checkpoint(checkpoint, target)
        assert path.read_bytes() == b"mine"
        path.write_bytes(before)


def test_a_cut_download_is_named(shared, tmp_path):
    source = shared / "upstream_checkpoints/cleanumamba/Experiment_CleanU_Mamba.pkl"
    path = tmp_path / "cut.pkl"
    path.write_bytes(source.read_bytes()[:500_000])
    refuses(path, r"cut\.pkl: not a readable checkpoint")


def test_what_does_not_fit_is_named(model, checkpoint, tmp_path):
    state = load_file(checkpoint)
    path = tmp_path / "odd.pkl"
    torch.save({"some.weight": torch.zeros(3)}, path)
    refuses(path, r"odd\.pkl: unknown system")
    refuses(path, "not the weights of a CleanUMamba", "cleanumamba")
    refuses(checkpoint, "no system 'wavenet'; there are: cleanumamba", "wavenet")
    del state["conv_in.bias"]
    header = {"system": "cleanumamba", "config": to_dict(model.config), "record": {}}
    save_file(state, tmp_path / "lacks.safetensors", {"speechlab": json.dumps(header)})
    refuses(tmp_path / "lacks.safetensors", r"lacks conv_in\.bias")
    refuses(tmp_path / "absent.pkl", "no such checkpoint")
    (tmp_path / "run" / "empty").mkdir()
    refuses(tmp_path / "run" / "empty", r"no best\.safetensors; name the file itself")
