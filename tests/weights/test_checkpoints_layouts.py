"""Published files as trainings save them: each layout gives the same model or a named error."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import speechlab
from speechlab.config import override
from speechlab.errors import UserError
from speechlab.models.sepmamba import CONFIGS, SepMamba
from speechlab.weights.checkpoints import import_checkpoint, read_pickle, save
from speechlab.weights.names import MARKS, recognise, unwrapped

NAMES = {"small_causal": "sepmamba_s_causal", "small_noncausal": "sepmamba_s"}
OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}
TRAINING = {"epoch": 3, "step": torch.tensor(4), "optimizer": OPTIMIZER}


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


LAYOUTS = {
    "bare": lambda s: s,
    "bare and an int": lambda s: s | {"epoch": 3},
    "parameters": lambda s: {name: torch.nn.Parameter(t) for name, t in s.items()},
    "double": lambda s: {name: t.double() for name, t in s.items()},
    "model_state_dict": lambda s: {"model_state_dict": s, "rng": torch.zeros(9)} | TRAINING,
    "wrapped model_state_dict": lambda s: {"model_state_dict": prefixed(s, "module.")} | TRAINING,
    "generator": lambda s: {"generator": s},
    "state_dict": lambda s: {"state_dict": s, "callbacks": {"early": {"best": torch.zeros(1)}}},
    "Lightning": lambda s: {"state_dict": prefixed(s, "model."), "hyper_parameters": {"dim": 64}},
    **{key: lambda s, key=key: {key: s} | TRAINING for key in ("model", "net", "params")},
    **{key: lambda s, key=key: {key: s} | TRAINING for key in ("weights", "model_state", "mine")},
    "known first": lambda s: {"ema": prefixed(s, "a."), "model": s},
    **{f"{p}*": lambda s, p=p: prefixed(s, p) for p in ("module.", "model.", "_orig_mod.", "net.")},
    **{p: lambda s, p=p: prefixed(s, p) for p in ("module.net.", "module._orig_mod.model.")},
}


@pytest.fixture(params=NAMES, scope="module")
def golden(request, shared):
    """Name, published tensors, and the model they give."""
    file = shared / "golden/sepmamba" / request.param / "state.safetensors"
    name = NAMES[request.param]
    return name, load_file(file), speechlab.load(file, name)


def same(model, wanted):
    """Settings, mode and every bit of the weights."""
    held = wanted.state_dict()
    given = model.state_dict()
    equal = given.keys() == held.keys() and all(torch.equal(given[k], held[k]) for k in held)
    return equal and (model.config, model.training) == (wanted.config, wanted.training)


@pytest.mark.parametrize("golden", ["small_noncausal"], indirect=True)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_model(golden, tmp_path, layout):
    """By the published name, by the system, and without either; bare tensors in both formats."""
    name, state, wanted = golden
    content = LAYOUTS[layout](state)
    files = [tmp_path / "best.pth"]
    torch.save(content, files[0])
    if all(isinstance(value, torch.Tensor) for value in content.values()):
        files.append(tmp_path / "best.safetensors")
        save_file(content, files[1], {"format": "pt"})
    for file in files:
        for system in (name, "sepmamba", None):
            assert same(speechlab.load(file, system), wanted)


def test_half_precision_and_legacy_files(golden, tmp_path):
    name, state, _ = golden
    state = {key: tensor.half() for key, tensor in state.items()}
    torch.save({"model": state}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    model = speechlab.load(tmp_path / "old.pt", name)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda s: s | {"epoch": torch.tensor(3)}, "has an unknown epoch"),
        (
            lambda s: prefixed(s, "model.") | {"loss.weight": torch.zeros(2)},
            r"not the weights of a SepMamba: no tensor is named down\.0\.mamba_layer\.\*; the "
            r"file's are model\.\S+, loss\.weight and \d+ more; save the model's own",
        ),
        (
            lambda s: {"a.b": torch.zeros(2)},
            r"no tensor is named down\.0\.mamba_layer\.\*; the file's are a\.b; save the model's",
        ),
        (lambda s: {"model": s, "net": s}, r"holds several state dicts \(model, net\); save"),
        (lambda s: {"ours": s, "ema": s}, r"holds several state dicts \(ours, ema\); save"),
        (lambda s: {"epoch": 3, "loss": 0.5}, "holds no named tensors; its keys: epoch, loss$"),
        (lambda s: {}, "holds no named tensors; its keys: none$"),
        (lambda s: {"TSTransformer.0.x": torch.zeros(2)}, "a SepMamba: name system mpsenet$"),
    ],
)
def test_a_misfit_is_named_in_one_line(golden, tmp_path, content, said):
    name, state, _ = golden
    torch.save(content(state), tmp_path / "odd.pth")
    with pytest.raises(UserError, match=rf"odd\.pth: .*{said}") as error:
        speechlab.load(tmp_path / "odd.pth", name)
    assert "\n" not in str(error.value) and "mamba.ahead" not in str(error.value)


def test_an_unknown_system_is_an_error_with_the_command_to_run(tmp_path):
    """`separate --checkpoint` has no --system; `import` has."""
    torch.save({"net": {"x.weight": torch.zeros(2)}}, tmp_path / "odd.pth")
    command = r"`speechlab import \S+odd\.pth OUT\.safetensors --system NAME`, one of cleanumamba"
    said = rf"unknown system: its tensors are x\.weight; name its system in {command}"
    with pytest.raises(UserError, match=said):
        speechlab.load(tmp_path / "odd.pth")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_ours_load_by_the_name_they_were_imported_by(golden, tmp_path, suffix):
    """File and run directory; by name, by system, and without either."""
    name, state, wanted = golden
    source = tmp_path / f"best{suffix}"
    if suffix == ".pth":
        torch.save({"model_state_dict": state}, source)
    else:
        save_file(state, source)
    (tmp_path / "run").mkdir()
    ours = tmp_path / "run" / "best.safetensors"
    import_checkpoint(source, ours, name)
    for path in (ours, ours.parent):
        for system in (name, "sepmamba", None):
            assert same(speechlab.load(path, system), wanted)
    assert same(import_checkpoint(ours, tmp_path / "again.safetensors", name), wanted)


@pytest.mark.parametrize("held", CONFIGS)
def test_ours_of_another_name_is_named(held, tmp_path):
    """Sizes and direction are the name's; the level is not. Other systems are refused."""
    config = override(CONFIGS[held], normalize="utterance")
    path = save_empty(tmp_path / "ours.safetensors", config)
    assert speechlab.load(path, held).config == config
    for other in CONFIGS.keys() - {held}:
        with pytest.raises(UserError, match=f"ours.*: .* weights of {held}, not of {other}"):
            speechlab.load(path, other)
    with pytest.raises(UserError, match="holds a sepmamba, not a mpsenet"):
        speechlab.load(path, "mpsenet")


def test_ours_of_the_other_direction_is_named(golden, tmp_path):
    """Also at other sizes than the published ones."""
    name, state, _ = golden
    other = {"sepmamba_s": "sepmamba_m_causal", "sepmamba_s_causal": "sepmamba_m"}[name]
    torch.save(state, tmp_path / "best.pth")
    import_checkpoint(tmp_path / "best.pth", tmp_path / "ours.safetensors", name)
    with pytest.raises(UserError, match=rf"ours\.safetensors: these .* those of {other} do not"):
        speechlab.load(tmp_path / "ours.safetensors", other)


def save_empty(path, config):
    with torch.device("meta"):
        model = SepMamba(config)
    return save(path, model.to_empty(device="cpu"))


@pytest.mark.parametrize(
    ("folder", "system"),
    [
        ("sepmamba/small_causal", "sepmamba"),
        ("semamba/small_h16_n2", "semamba_advanced"),
        ("mpsenet/small_c16", "mpsenet"),
        ("mpsenet_mamba/small_c16_1_2", "mpsenet_mamba"),
    ],
)
def test_every_system_is_recognised_by_its_mark(shared, tmp_path, folder, system):
    """Wrapped and nested files load as the plain one of a named system."""
    file = shared / "golden" / folder / "state.safetensors"
    state, named = load_file(file), speechlab.load(file, system)
    assert recognise(state) == system and unwrapped(state) is state
    torch.save({"model": prefixed(state, "module.")} | TRAINING, tmp_path / "best.pth")
    model = speechlab.load(tmp_path / "best.pth")
    assert model.config == named.config
    assert all(map(torch.equal, model.parameters(), named.parameters()))


def test_published_files_are_recognised_by_their_marks(shared):
    """CleanUMamba's; a discriminator is of no system and is returned unchanged."""
    files = list((shared / "upstream_checkpoints/cleanumamba").glob("*.pkl"))
    assert files
    for path in files:
        state, _ = read_pickle(path)
        assert recognise(state) == "cleanumamba" and unwrapped(state) is state
    path = shared / "upstream_checkpoints/semamba/pretrained_discriminator.pth"
    state, _ = read_pickle(path)
    assert recognise(state) is None and unwrapped(state) is state


def test_marks_of_several_systems_identify_none():
    assert recognise([mark + "x" for mark in MARKS.values()]) is None
    for system, mark in MARKS.items():
        assert recognise([mark + "x"]) == system
    for names in ([], ["a."], ["a", "b.c"], ["x.y.z"]):
        state = dict.fromkeys(names, torch.zeros(1))
        assert unwrapped(state) is state
