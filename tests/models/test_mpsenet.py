"""MP-SENet and its versions: published numbers, items of a batch, lengths, levels, files."""

import re

import pytest
import torch
from safetensors.torch import load_file

import speechlab
from speechlab.audio.level import LEVELS
from speechlab.audio.spectrum import FrontEnd, Spectrum
from speechlab.config import override
from speechlab.errors import UserError
from speechlab.models import SYSTEMS
from speechlab.models.mpsenet import (
    MAMBA_CONFIGS,
    MambaBlock,
    MPSENetConformer,
    MPSENetConformerConfig,
    MPSENetMambaConfig,
)
from tests.support import small_models
from tests.support.phase_channels import PhaseChannels
from tests.support.signals import array

SMALL = {
    name: small_models.SMALL[name] for name in ("mpsenet", "mpsenet_conformer", "mpsenet_mamba")
}
GOLDEN = {"mpsenet": "mpsenet/small_c16", "mpsenet_mamba": "mpsenet_mamba/small_c16_1_2"}
HIDDEN = {  # reference activations and whose output they are
    "mpsenet": {"h_encoder": "encoder", "h_mask": "mask_decoder"}
    | {f"h_block{i}": f"blocks.{i}" for i in range(4)},
    "mpsenet_mamba": {
        "h_encoder": "encoder",
        "h_shared0": "blocks.0",
        "h_mag1": "mag_branch.1",
        "h_pha1": "phase_branch.1",
        "h_mask": "mask_decoder",
    },
}
AXES = ["named", "published"]


def build(system, **changes):
    return SYSTEMS[system][1](override(SMALL[system], **changes))


@pytest.fixture(params=SMALL)
def system(request):
    return request.param


@pytest.fixture(params=GOLDEN)
def golden(request, shared):
    """System, path of its weights, and its reference tensors by name."""
    folder = shared / "golden" / GOLDEN[request.param]
    files = [*folder.glob("*.npy"), *folder.glob("zero_lead/*.npy")]
    names = [str(file.relative_to(folder).with_suffix("")) for file in files]
    tensors = {n: array(file) for n, file in zip(names, files, strict=True)}
    return request.param, folder / "state.safetensors", tensors


@pytest.mark.parametrize("n_items", [1, 2])
@pytest.mark.parametrize(("axes", "mark"), [("published", ""), ("named", "bf_")])
def test_spectra_are_the_published_ones(golden, axes, mark, n_items):
    """mag and phase channels to 1e-5; angles are loose where both channels are near zero."""
    system, path, tensors = golden
    model = speechlab.load(path, system=system, axes=axes)
    noisy = Spectrum(*(tensors[name][:n_items] for name in ("noisy_mag", "noisy_pha")))
    channels = PhaseChannels(model.phase_decoder)
    with torch.no_grad():
        estimate = model.network(noisy)
    wanted = Spectrum(*(tensors[f"{name}_{mark}b{n_items}"] for name in ("mag", "pha")))
    assert (estimate.mag - wanted.mag).abs().max() <= 1e-5
    assert channels.error(estimate.phase, wanted.phase) <= 1e-5
    assert (estimate.parts - wanted.parts).abs().max() <= 5e-4


def test_activations_are_the_published_ones(golden):
    """Each to 1e-5 of its largest value."""
    system, path, tensors = golden
    model, found = speechlab.load(path, system=system), {}
    assert set(HIDDEN[system]) == {name for name in tensors if name.startswith("h_")}
    for name, module in HIDDEN[system].items():
        keep = lambda _, inputs, output, name=name: found.__setitem__(name, output)  # noqa: E731
        model.get_submodule(module).register_forward_hook(keep)
    with torch.no_grad():
        model.network(Spectrum(tensors["noisy_mag"][:1], tensors["noisy_pha"][:1]))
    for name, output in found.items():
        wanted = tensors[name].reshape(output.shape)
        assert (output - wanted).abs().max() <= 1e-5 * wanted.abs().max(), name


def test_waveforms_are_the_published_ones_alone_and_in_a_batch(golden):
    system, path, tensors = golden
    model = speechlab.load(path, system=system)
    assert model.config.axes == "published"
    noisy = torch.stack([tensors["zero_lead/noisy"], tensors["zero_lead/clean"]])[:, None]
    wanted = tensors["zero_lead/wav_out"]
    with torch.no_grad():
        alone, together = model(noisy[:1]), model(noisy)
    assert (alone[0, 0] - wanted).abs().max() <= 1e-4
    assert (together[0, 0] - wanted).abs().max() <= 1e-4


def test_the_published_estimate_gives_the_published_waveform(golden):
    """Synthesis from the stored spectrum, at the level of the input."""
    _, _, tensors = golden
    noisy, wanted = tensors["wav_in"][:1], tensors["wav_b1"]
    estimate = Spectrum(tensors["mag_b1"], tensors["pha_b1"])
    waveform = FrontEnd(offsets="mpsenet").synthesise(estimate, noisy.shape[-1])
    assert (waveform / LEVELS["rms"].gain(noisy[:, None], 16000)[0] - wanted).abs().max() <= 1e-6


@pytest.mark.parametrize("name", ["model.pth", "g_best_vb", "g_00157500"])
def test_pickled_generators_load(golden, tmp_path, name):
    """As published: a dict with the tensors under "generator"; the system need not be named."""
    system, path, tensors = golden
    torch.save({"generator": load_file(path)}, tmp_path / name)
    noisy = tensors["wav_in"][:1, None]
    models = [speechlab.load(*at) for at in ((path, system), (tmp_path / name, system))]
    models.append(speechlab.load(tmp_path / name))
    assert {type(model) for model in models} == {SYSTEMS[system][1]}
    with torch.no_grad():
        wanted, *found = (model(noisy) for model in models)
    assert all(torch.equal(wanted, other) for other in found)


def test_weights_of_another_version_are_named(golden):
    system, path, _ = golden
    for other in SMALL.keys() - {system}:
        with pytest.raises(UserError, match=f"not the weights of {other}: name system {system}"):
            speechlab.load(path, system=other)


@pytest.mark.parametrize(
    "lost", ["mask_decoder.lsigmoid.slope", "dense_encoder.dense_conv_1.0.weight"]
)
def test_weights_with_a_gap_are_named_in_one_line(golden, tmp_path, lost):
    system, path, _ = golden
    state = load_file(path)
    del state[lost]
    torch.save({"generator": state}, tmp_path / "g_best")
    with pytest.raises(UserError, match="g_best: ") as caught:
        speechlab.load(tmp_path / "g_best", system=system)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("axes", AXES)
def test_an_item_in_a_batch_is_the_item_alone(system, axes):
    model = build(system, axes=axes).double().eval()
    noisy = torch.randn(3, 1, 100, dtype=torch.float64)
    kept = noisy.clone()
    together = model(noisy)
    assert torch.equal(noisy, kept)
    torch.testing.assert_close(together[1:2], model(noisy[1:2]), rtol=0, atol=1e-9)
    parts = model.spectrum(noisy).parts[1:2]
    torch.testing.assert_close(parts, model.spectrum(noisy[1:2]).parts, rtol=0, atol=1e-9)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("length", [1, 2, 7, 8, 17, 100])
def test_every_length_keeps_its_length(system, axes, length):
    """Of noise and of silence."""
    noisy = torch.cat([torch.randn(2, 1, length), torch.zeros(1, 1, length)])
    estimate = build(system, axes=axes).eval()(noisy)
    assert estimate.shape == (3, 1, length) and estimate.isfinite().all()


def test_loudness_drops_out(system):
    model = build(system).double().eval()
    noisy = torch.randn(1, 1, 100, dtype=torch.float64)
    torch.testing.assert_close(model(8 * noisy), 8 * model(noisy), rtol=0, atol=1e-9)


@pytest.mark.parametrize("axes", AXES)
def test_gradients_reach_every_weight(system, axes):
    model = build(system, axes=axes)
    model.spectrum(torch.randn(2, 1, 100)).parts.square().mean().backward()
    model(torch.randn(2, 1, 100)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# The Conformer version


CONFORMER = MPSENetConformerConfig(
    d_model=8,
    n_blocks=2,
    n_heads=4,
    expand=3,
    kernel_size=5,
    axes="published",
    front_end=FrontEnd(n_fft=32, hop_length=8, win_length=32),
)
UNIT = {"conv": 0, "norm": 1, "activation": 2}
FEED = {"norm": 0, "widen": 1, "narrow": 4}
CONVOLUTION = {"norm": 0, "widen": 2, "depthwise": 4, "batch_norm": 5, "narrow": 7}


def published_name(name):
    """The name of one of our tensors in the authors' code."""
    rules = (
        (r"^encoder\.(widen|down)\.(\w+)", lambda m: f"encoder.{m[1]}.{UNIT[m[2]]}"),
        (r"^encoder\.widen", "dense_encoder.dense_conv_1"),
        (r"^encoder\.down", "dense_encoder.dense_conv_2"),
        (r"^encoder", "dense_encoder"),
        (
            r"\.dense\.layers\.(\d)\.(\w+)",
            lambda m: f".dense_block.dense_block.{m[1]}.{UNIT[m[2]]}",
        ),
        (r"^mask_decoder\.up", "mask_decoder.mask_conv.0"),
        (r"^mask_decoder\.narrow\.(\d)", lambda m: f"mask_decoder.mask_conv.{int(m[1]) + 1}"),
        (r"\.slope$", ".lsigmoid.slope"),
        (r"^phase_decoder\.up", "phase_decoder.phase_conv.0"),
        (r"^phase_decoder\.norm", "phase_decoder.phase_conv.1"),
        (r"^phase_decoder\.activation", "phase_decoder.phase_conv.2"),
        (r"\.real\.", ".phase_conv_r."),
        (r"\.imaginary\.", ".phase_conv_i."),
        (r"^blocks\.(\d)\.(time|freq)\.", r"TSConformer.\1.\2_conformer."),
        (r"\.feed_in\.(\w+)\.", lambda m: f".ffm1.ffm.{FEED[m[1]]}."),
        (r"\.feed_out\.(\w+)\.", lambda m: f".ffm2.ffm.{FEED[m[1]]}."),
        (r"\.attention_norm\.", ".attn.layernorm."),
        (r"\.attention\.in_proj\.", ".attn.attn.in_proj_"),
        (r"\.attention\.", ".attn.attn."),
        (r"\.convolution\.(\w+)\.", lambda m: f".ccm.ccm.{CONVOLUTION[m[1]]}."),
        (r"\.norm_out\.", ".post_norm."),
    )
    for pattern, theirs in rules:
        name = re.sub(pattern, theirs, name)
    return name


@pytest.fixture
def conformer():
    return MPSENetConformer(CONFORMER).eval()


def test_weights_under_the_authors_names_load(conformer, tmp_path):
    """Sizes read off the tensors; the published file's axes."""
    state = {published_name(name): tensor for name, tensor in conformer.state_dict().items()}
    torch.save({"generator": state}, tmp_path / "g_best")
    loaded = speechlab.load(tmp_path / "g_best", system="mpsenet_conformer")
    assert loaded.config == conformer.config
    noisy = torch.randn(2, 1, 100)
    assert torch.equal(loaded(noisy), conformer(noisy))


def test_dropout_only_while_training(conformer):
    noisy = torch.randn(1, 1, 100)
    assert torch.equal(conformer(noisy), conformer(noisy))
    conformer.train()
    assert not torch.equal(conformer(noisy), conformer(noisy))


# The Mamba version


def test_one_mamba_for_both_axes_is_two_with_the_same_weights():
    one = MambaBlock(MPSENetMambaConfig(d_model=4, mamba="both_axes"))
    two = MambaBlock(MPSENetMambaConfig(d_model=4, mamba="per_axis"))
    two.norm.load_state_dict(one.norm.state_dict())
    for scan in two.scans:
        scan.load_state_dict(one.scans[0].state_dict())
    assert (len(one.scans), len(two.scans)) == (1, 2)
    x = torch.randn(2, 4, 5, 3)
    assert torch.equal(one(x), two(x))


def small_state(shared):
    """The reference model's tensors, rewired as the small model has them."""
    state = load_file(shared / "golden/mpsenet_mamba/small_c16_1_2/state.safetensors")
    small = {n: t for n, t in state.items() if not n.startswith(("shared", "mag_ts"))}
    for name, tensor in state.items():
        if name.startswith("mag_ts_transformer.") and ".mamba_f." not in name:
            name = name.replace(".mamba_t.", ".mamba.")
            small[name] = tensor
            small[name.replace("mag_", "shared_")] = tensor
    return small


def test_the_small_model_is_read_off_its_tensors(shared, tmp_path):
    torch.save({"generator": small_state(shared)}, tmp_path / "g_small")
    model = speechlab.load(tmp_path / "g_small", system="mpsenet_mamba")
    assert model.config == override(MAMBA_CONFIGS["small"], d_model=16, axes="published")


@pytest.mark.parametrize("size", MAMBA_CONFIGS)
def test_sizes_build(size):
    with torch.device("meta"):
        SYSTEMS["mpsenet_mamba"][1](MAMBA_CONFIGS[size])
