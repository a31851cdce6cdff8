"""SEMamba advanced: published numbers, sizes, level, lengths, batches, silence, its files."""

from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import speechlab
from speechlab.audio.level import LEVELS
from speechlab.audio.spectrum import Spectrum
from speechlab.config import override
from speechlab.errors import UserError
from speechlab.models.semamba import SEMambaAdvanced, SEMambaAdvancedConfig
from tests.support import signals
from tests.support.phase_channels import PhaseChannels
from tests.support.reference_front_end import ReferenceFrontEnd
from tests.support.signals import array

SYSTEM = "semamba_advanced"
TINY = SEMambaAdvancedConfig(d_model=4, n_blocks=1, layer={"d_state": 4, "expand": 2})
LAYERS = {
    "mamba": {"d_state": 4, "expand": 2},
    "mamba2": {"d_state": 4, "d_head": 4},
    "transformer": {"n_heads": 2, "d_hidden": 6},
}


def tiny(**changes):
    return SEMambaAdvanced(override(TINY, **changes)).eval()


noise = partial(signals.noise, level=0.1)


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "golden/semamba/small_h16_n2"


@pytest.fixture(scope="module")
def golden(folder):
    return lambda name: array(folder / f"{name}.npy")


@pytest.fixture(scope="module")
def published(folder):
    return speechlab.load(folder / "state.safetensors", system=SYSTEM)


def kept(layers: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    """What each layer gives, once the model has run."""
    outputs = {}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda _, __, out, name=name: outputs.update({name: out}))
    return outputs


@torch.no_grad()
def test_published_weights_give_the_published_activations(published, golden):
    """From the stored spectrum on; each to 1e-5 of its largest value (measured: 3e-7)."""
    layers = {"h_encoder": published.encoder, "h_mask": published.mask_decoder}
    layers |= {f"h_block{i}": block for i, block in enumerate(published.blocks)}
    found, channels = kept(layers), PhaseChannels(published.phase_decoder)
    estimate = published.network(Spectrum(golden("noisy_mag"), golden("noisy_pha")))
    found["h_mask"] = found["h_mask"].transpose(1, 2)[:, None]
    found["mag"] = estimate.mag
    for name, tensor in found.items():
        wanted = golden(name)
        assert tensor.shape == wanted.shape
        assert (tensor - wanted).abs().max() <= 1e-5 * wanted.abs().max(), name
    assert channels.error(estimate.phase, golden("pha")) <= 1e-5
    parts, com = Spectrum(golden("mag"), golden("pha")).parts, golden("com")
    assert (parts - com).abs().max() <= 1e-5 * com.abs().max()


@torch.no_grad()
def test_published_weights_give_the_published_waveform(folder, golden):
    """The input begins with 700 zeros: a mirrored first frame has phases of 0 or ±π (README)."""
    model = speechlab.load(folder / "state.safetensors", system=SYSTEM)
    model.front_end = ReferenceFrontEnd(**vars(model.front_end))
    estimate = model(golden("zero_lead/noisy")[None, None])
    assert (estimate[0, 0] - golden("zero_lead/wav_out")).abs().max() <= 1e-4


def test_the_published_estimate_gives_the_published_waveform(published, golden):
    """Synthesis from the stored spectrum, at the level of the input."""
    gain = LEVELS["rms"].gain(golden("wav_in")[None], 16000)[0]
    waveform = published.front_end.synthesise(Spectrum(golden("mag"), golden("pha")), 6000) / gain
    assert (waveform - golden("wav_out")).abs().max() <= 1e-6


def test_the_front_end_is_the_published_one(published, golden):
    """The complex spectrum, not compressed, to 1e-6 of its largest value."""
    noisy = golden("wav_in")[None]
    found = published.front_end.analyse((noisy * published.gain(noisy))[:, 0])
    spec, wanted = (
        torch.polar(mag ** (1 / 0.3), phase)
        for mag, phase in (found, (golden("noisy_mag"), golden("noisy_pha")))
    )
    assert (spec - wanted).abs().max() <= 1e-6 * wanted.abs().max()


@pytest.mark.parametrize("sequence_layer", LAYERS)
def test_examples_are_independent(sequence_layer):
    """An item alone is the item in a batch, whatever is beside it."""
    model = tiny(sequence_layer=sequence_layer, layer=LAYERS[sequence_layer])
    noisy = torch.cat([noise(1, 1, 40_000), 30 * noise(1, 1, 40_000, seed=1)])
    with torch.no_grad():
        together, alone = model(noisy), [model(one[None])[0] for one in noisy]
    for one, two in zip(together, alone, strict=True):
        assert (one - two).abs().max() <= 1e-5 * two.abs().max()


def test_the_level_is_the_same_to_the_last_bit_in_every_batch_and_on_every_machine():
    """As one thread sums one example; what a last bit does is said in `SpectralModel.gain`."""
    model = tiny()
    for pair in noise(10, 2, 1, 50_000):
        alone = torch.stack([(50_000 / (one**2.0).sum()).sqrt() for one in pair])
        try:
            torch.set_num_threads(2)
            together, single = model.gain(pair), [model.gain(one[None]) for one in pair]
        finally:
            torch.set_num_threads(1)
        assert torch.equal(together.flatten(), alone)
        assert torch.equal(torch.cat(single).flatten(), alone)


@pytest.mark.parametrize("length", [1, 99, 100, 101, 16_000])
@pytest.mark.parametrize("direction", ["both", "forward"])
def test_every_length_keeps_its_length(length, direction):
    with torch.no_grad():
        estimate = tiny(direction=direction)(noise(2, 1, length))
    assert estimate.shape == (2, 1, length) and estimate.isfinite().all()


def test_loudness_drops_out():
    """Twice as loud in, twice as loud out, the input left alone."""
    model, noisy = tiny(), noise(1, 1, 3000)
    before = noisy.clone()
    with torch.no_grad():
        torch.testing.assert_close(model(2 * noisy), 2 * model(noisy), rtol=1e-6, atol=1e-7)
    assert torch.equal(noisy, before)


@pytest.mark.parametrize("sequence_layer", LAYERS)
def test_silence_is_enhanced_and_has_gradients(sequence_layer):
    """A batch may hold a silent clip: finite out, finite gradients, and all weights are reached."""
    model = tiny(sequence_layer=sequence_layer, layer=LAYERS[sequence_layer])
    noisy = torch.cat([torch.zeros(1, 1, 900), noise(1, 1, 900)])
    with torch.no_grad():
        assert model(noisy[:1]).abs().max() <= 1e-4
    (model(noisy).square().mean() + model.spectrum(noisy).parts.square().mean()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    dead = {name for name, g in gradients.items() if not g.abs().sum()}
    assert not dead, dead


def test_the_scan_stays_in_float32_under_autocast(monkeypatch):
    from speechlab.layers import mixers

    seen, scan = [], mixers.selective_scan

    def watched(*operands, **options):
        y, state = scan(*operands, **options)
        seen.append(state.dtype)
        return y, state

    monkeypatch.setattr(mixers, "selective_scan", watched)
    model, noisy = tiny(), noise(1, 1, 2000)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        estimate = model(noisy)
    assert seen == [torch.float32] * 4
    assert estimate.dtype == torch.float32 and estimate.isfinite().all()


def test_without_gradients_long_batches_go_in_parts(monkeypatch):
    """The sequences of a path are independent; a few at once give what all give."""
    from speechlab.layers import bidirectional

    model, noisy = tiny(), noise(1, 1, 3000)
    with torch.no_grad():
        whole = model(noisy)
        monkeypatch.setattr(bidirectional, "ELEMENTS_AT_ONCE", 1000)
        torch.testing.assert_close(model(noisy), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["SEMamba_advanced.pth", "g_00587000"])
@pytest.mark.parametrize("held", ["bare", "generator"])
def test_published_pickles_are_read(folder, published, tmp_path, name, held):
    state = load_file(folder / "state.safetensors")
    torch.save(state if held == "bare" else {"generator": state}, tmp_path / name)
    model = speechlab.load(tmp_path / name, system=SYSTEM)
    assert model.config == published.config
    for mine, theirs in zip(model.parameters(), published.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_sizes_are_read_off_the_tensors(folder, tmp_path):
    """A forward-only model has neither backward blocks nor fusion."""
    state = load_file(folder / "state.safetensors")
    one_way = {k: v for k, v in state.items() if "backward" not in k and "linear." not in k}
    torch.save(one_way, tmp_path / "g_1")
    config = speechlab.load(tmp_path / "g_1", system=SYSTEM).config
    wanted = {"d_state": 16, "d_conv": 4, "expand": 4}
    assert (config.d_model, config.n_blocks, config.direction) == (16, 2, "forward")
    assert config.layer == wanted and config.front_end.n_freqs == 201


def test_a_discriminator_is_called_one(shared):
    path = shared / "upstream_checkpoints/semamba/pretrained_discriminator.pth"
    with pytest.raises(UserError, match=r"discriminator\.pth: .*metric discriminator") as raised:
        speechlab.load(path, system=SYSTEM)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda s: {"weight": torch.zeros(2)}, "not the weights of a SEMamba: no "),
        (lambda s: {k: v for k, v in s.items() if "TSMamba.1.freq" not in k}, "lacks blocks.1.fre"),
        (lambda s: s | {"odd.weight": torch.zeros(2)}, "unknown odd.weight"),
        (lambda s: s | {"mask_decoder.lsigmoid.slope": torch.zeros(())}, "odd tensor shapes"),
        (lambda s: s | {"mask_decoder.lsigmoid.slope": torch.zeros(3)}, "another size of mask_dec"),
        (lambda s: s | {"TSMamba.0.tlinear.weight": torch.zeros(3)}, "another size of blocks.0"),
    ],
)
def test_what_is_no_semamba_is_said_in_a_line(folder, tmp_path, broken, said):
    path = tmp_path / "g_7"
    torch.save(broken(load_file(folder / "state.safetensors")), path)
    with pytest.raises(UserError) as raised:
        speechlab.load(path, system=SYSTEM)
    message = str(raised.value)
    assert message.startswith(str(path)) and said in message and "\n" not in message


def test_the_mask_leaves_nothing_where_nothing_is():
    """The estimate's magnitude is 0 to 2 times the noisy one."""
    model = tiny()
    with torch.no_grad():
        mag = torch.rand(1, 201, 9, generator=torch.Generator().manual_seed(2))
        mag[:, 50:60] = 0
        estimate = model.network(Spectrum(mag, torch.zeros_like(mag)))
    assert (estimate.mag[:, 50:60] == 0).all() and (estimate.mag <= 2 * mag).all()
