"""SepMamba: published numbers, sizes, gradients and start; prefix and chunk law on mixtures."""

import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import speechlab
from speechlab.audio import files as audio
from speechlab.config import override
from speechlab.errors import UserError
from speechlab.losses import waveform
from speechlab.losses.pit import best_permutation, pairwise, reordered
from speechlab.models.macs import n_params
from speechlab.models.sepmamba import CONFIGS, SepMamba, SepMambaConfig
from speechlab.weights.names import renamed
from tests.support import signals
from tests.support.signals import array

GOLDEN = {"small_causal": "sepmamba_s_causal", "small_noncausal": "sepmamba_s"}
PARAMETERS = {"sepmamba_s": 7_253_826, "sepmamba_m": 22_249_090}  # the same, causal or not
PUBLISHED_MACS = {"sepmamba_s": 12.46e9, "sepmamba_m": 37.0e9}  # a second
TINY = SepMambaConfig(
    channels=(4, 6, 5), kernel_sizes=(6, 4, 3), n_blocks=2, layer={"d_state": 3}, n_sources=3
)
CAUSAL = override(TINY, direction="forward")


PUBLISHED = (  # (ours, published), applied in order
    (r"^decoder\.", "up."),
    (r"^encoder\.", "down."),
    (r"^out\.", "decoder."),
    (r"\.down\.", ".conv1d."),
    (r"\.up\.", ".convT1d."),
    (r"\.fusion\.", ".conv1d_fusion."),
    (r"\.mamba\.(ahead\.)?layers\.", ".mamba_layer.forward_mamba_block.mamba_blocks."),
    (r"\.mamba\.back\.layers\.", ".mamba_layer.backward_mamba_block.mamba_blocks."),
)


def published(name):
    """The published name of a tensor of ours, written apart from the converter."""
    return renamed(name, PUBLISHED)


def tiny(config=CAUSAL):
    torch.manual_seed(0)
    return SepMamba(config).double().eval()


noise = partial(signals.noise, dtype=torch.float64)


@pytest.fixture(params=GOLDEN)
def golden(request, shared):
    return shared / "golden/sepmamba" / request.param


def loaded(folder):
    return speechlab.load(folder / "state.safetensors", system=GOLDEN[folder.name])


@pytest.fixture(scope="module")
def mixtures(shared):
    """Two seconds of two speakers each, (B, 1, T) at 8 kHz."""
    files = sorted((shared / "audio/mix2/libri2mix_dev_8k/mix").iterdir())[:2]
    return torch.stack([audio.load(file, 8000)[0][:1, 8000:24001] for file in files])


def test_published_weights_give_the_published_output(golden):
    """Where the published output ends, zeros follow."""
    with torch.no_grad():
        estimate, wanted = loaded(golden)(array(golden / "x.npy")), array(golden / "y.npy")
    assert estimate.shape == (1, 2, 4003) and wanted.shape == (1, 2, 4002)
    torch.testing.assert_close(estimate[..., :4002], wanted, rtol=0, atol=1e-5)
    assert not estimate[..., 4002:].any()


def test_published_weights_give_the_published_activations(golden):
    """Of each level. The causal ones are of the probe of its manifest: silence from 3000 on."""
    model, seen = loaded(golden), {}
    for i, layer in enumerate((*model.encoder, *model.decoder)):
        name = f"h_down{i}" if i < 3 else f"h_up{i - 3}"
        layer.register_forward_hook(lambda _, __, given, name=name: seen.update({name: given[0]}))
    mixture = array(golden / "x.npy")
    if "probe" in json.loads((golden / "manifest.json").read_text()).get("extra", {}):
        mixture[..., 3000:] = 0
    with torch.no_grad():
        model(mixture)
    assert len(seen) == 5
    for name, given in seen.items():
        torch.testing.assert_close(given, array(golden / f"{name}.npy"), rtol=0, atol=1e-5)


def test_a_step_of_training_is_the_published_one(golden):
    """Norm of each gradient; gradients, which are given clipped to 5; each weight after the step.

    The reference's sources are cut to its output, 4002 of 4003 samples.
    """
    folder, model = golden / "grad", loaded(golden)
    extra = json.loads((folder / "manifest.json").read_text())["extra"]
    weights = {published(name): p for name, p in model.named_parameters()}
    sources, estimate = array(folder / "sources.npy"), model(array(folder / "mix.npy")[:, None])
    estimate, sources = estimate[..., :4002], sources[..., :4002]
    order = best_permutation(pairwise(waveform.si_sdr)(estimate, sources))
    loss = waveform.si_sdr(reordered(estimate, order), sources).mean()
    loss.backward()
    assert loss.item() == pytest.approx(extra["loss"], rel=1e-5)
    norms = {name: p.grad.norm().item() for name, p in weights.items()}
    assert norms == pytest.approx(extra["grad_norms"], rel=1e-4)
    total = torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    assert total.item() == pytest.approx(extra["grad_norm_total"], rel=1e-4)
    files = {name: folder / f"grad_{name.replace('.', '_')}.npy" for name in weights}
    given = {name: array(file) for name, file in files.items() if file.exists()}
    assert len(given) == 3
    for name, grad in given.items():
        assert (weights[name].grad - grad).abs().max() <= 1e-4 * grad.abs().max(), name
    torch.optim.AdamW(model.parameters(), lr=15e-5).step()
    norms = {name: p.norm().item() for name, p in weights.items()}
    assert norms == pytest.approx(extra["param_norms_after_step"], rel=1e-4)


def test_the_published_loss(shared):
    """PIT of negative SI-SDR, the reordered estimates and the improvement over the mixture."""
    folder = shared / "golden/sepmamba/loss"
    mixture, sources, estimate = (array(folder / f"{name}.npy") for name in ("mix", "src", "gen"))
    order = best_permutation(pairwise(waveform.si_sdr)(estimate, sources))
    estimate = reordered(estimate, order)
    torch.testing.assert_close(estimate, array(folder / "reordered.npy"), rtol=0, atol=0)
    loss = waveform.si_sdr(estimate, sources).mean()
    torch.testing.assert_close(loss, array(folder / "loss.npy"), rtol=1e-5, atol=0)
    mixture = mixture[:, None].expand_as(sources)
    before, after = (
        pairwise(waveform.si_sdr)(x, sources).diagonal(dim1=1, dim2=2) for x in (mixture, estimate)
    )
    wanted = array(folder / "si_sdri.npy")
    torch.testing.assert_close(before - after, wanted, rtol=1e-4, atol=1e-4)


def test_the_start_is_the_published_one(golden):
    """Seed 0 draws the reference weights to 1e-6: same names, same order of draws."""
    model = loaded(golden)
    torch.manual_seed(0)
    drawn = SepMamba(model.config).state_dict()
    held = load_file(golden / "state.safetensors")
    assert {published(name) for name in drawn} == held.keys()
    for name, tensor in drawn.items():
        torch.testing.assert_close(tensor, held[published(name)], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_sizes_are_the_published_ones(name):
    """Twice the blocks one way: as many parameters, and multiply-accumulates, as both ways."""
    with torch.device("meta"):
        model = SepMamba(CONFIGS[name])
    size = name.removesuffix("_causal")
    assert n_params(model) == PARAMETERS[size]
    assert model.macs(2.0) == pytest.approx(2 * PUBLISHED_MACS[size], rel=0.08)
    assert (model.look_ahead, model.frame_length) == (105 if "causal" in name else None, 106)
    assert (model.hop_length, model.sample_rate, model.n_sources) == (8, 8000, 2)


def test_macs_are_those_of_the_layers():
    """The rule, written out: each weight once per frame of its level, the scan's products."""
    model, rate, total = SepMamba(CONFIGS["sepmamba_s"]), 8000, 0
    for layer in model.encoder:
        rate //= 2
        total += rate * (layer.down.weight.numel() + mamba_macs(layer.mamba))
    for layer in model.decoder:
        total += rate * layer.up.weight.numel()
        rate *= 2
        total += rate * (layer.fusion.weight.numel() + mamba_macs(layer.mamba))
    total += rate * model.out.weight.numel()
    assert model.macs(1.0) == total


def mamba_macs(mamba):
    mixers = [block.mixer for stack in (mamba.ahead, mamba.back) for block in stack.layers]
    weights = sum(p.numel() for m in mixers for n, p in m.named_parameters() if "j.weight" in n)
    weights += sum(m.conv1d.weight.numel() for m in mixers)
    return weights + sum(4 * m.A_log.numel() + 2 * len(m.D) for m in mixers)


@pytest.mark.parametrize("config", [TINY, CAUSAL], ids=["both", "forward"])
def test_the_network_is_the_one_described(config):
    """Written out without states, at all phases of a hop: zeros fill up to the skip's length."""
    model = tiny(config)
    for length in range(model.frame_length, model.frame_length + 17):
        mixture = noise(2, 1, length)
        wanted = plain(model, mixture)
        assert wanted.shape == (2, 3, length - length % 2)
        torch.testing.assert_close(
            model(mixture)[..., : wanted.shape[-1]], wanted, rtol=0, atol=1e-12
        )


def plain(model, x):
    """The published description, step by step."""
    skips = []
    for layer in model.encoder:
        x = mixed(layer, F.relu(layer.down(x)))
        skips.append(x)
    skips.pop()
    for layer in model.decoder:
        x, skip = F.relu(layer.up(x)), skips.pop()
        x = F.pad(x, (0, skip.shape[-1] - x.shape[-1]))
        x = mixed(layer, F.relu(layer.fusion(torch.cat([skip, x], 1))))
    return model.out(x)


def mixed(layer, x):
    """Stacks of blocks in one direction or both, (B, C, L)."""
    ahead = getattr(layer.mamba, "ahead", layer.mamba)
    back = getattr(layer.mamba, "back", None)
    x = x.transpose(1, 2)
    y = blocks(ahead, x)
    y = y if back is None else y + blocks(back, x.flip(1)).flip(1)
    return y.transpose(1, 2)


def blocks(stack, x):
    for block in stack.layers:
        x = x + block.mixer(F.layer_norm(x, x.shape[-1:], block.norm.weight, block.norm.bias))[0]
    return x


@pytest.mark.parametrize("config", [TINY, CAUSAL], ids=["both", "forward"])
def test_every_length_keeps_its_length(config):
    """About a frame and the hop, silence too; 2 floor(T / 2) samples are the network's, then 0."""
    model = tiny(config)
    frame = model.frame_length
    for length in (1, 2, 7, frame - 1, frame, frame + 1, frame + 2, frame + 9, 100, 101):
        estimate = model(noise(2, 1, length))
        assert estimate.shape == (2, 3, length) and estimate.isfinite().all()
        assert (estimate[..., -1] == 0).all() == (length % 2 == 1 and length >= frame)
    assert model(torch.zeros(1, 1, 300, dtype=torch.float64)).isfinite().all()


@pytest.mark.parametrize("normalize", ["none", "running"])
@pytest.mark.parametrize("cut", [1, 18, 19, 20, 21, 30, 57, 58, 100])
def test_prefix_law(cut, normalize):
    """A longer input changes no output sample up to cut - look_ahead."""
    model, mixture = tiny(override(CAUSAL, normalize=normalize)), noise(2, 1, 130)
    settled = max(0, cut - model.look_ahead)
    whole, prefix = model(mixture), model(mixture[..., :cut])
    torch.testing.assert_close(prefix[..., :settled], whole[..., :settled], rtol=0, atol=1e-12)


def test_prefix_law_on_mixtures(golden_causal, mixtures):
    """Real mixtures, published weights, float32."""
    with torch.inference_mode():
        whole = golden_causal(mixtures)
        for cut in (300, 5001, 12007):
            settled = cut - golden_causal.look_ahead
            prefix = golden_causal(mixtures[..., :cut])[..., :settled]
            torch.testing.assert_close(prefix, whole[..., :settled], rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def golden_causal(shared):
    return loaded(shared / "golden/sepmamba/small_causal")


def test_look_ahead_is_measured_by_gradient():
    """The published kernels: the first sample of a frame needs the 105th after it, none more."""
    config = SepMambaConfig(channels=(3, 4, 5), n_blocks=1, direction="forward")
    model, mixture = tiny(config), noise(1, 1, 400).requires_grad_()
    assert model.look_ahead == 105
    ahead = []
    for n in range(80, 96):
        (grad,) = torch.autograd.grad(model(mixture)[0, :, n].sum(), mixture)
        ahead.append(grad[0, 0].nonzero().max().item() - n)
    assert max(ahead) == 105 and min(ahead) == 98


def test_a_state_can_be_continued_from_twice():
    """And holds copies alone: none keeps a chunk in memory."""
    model = tiny()
    x, y = noise(2, 1, 1, 50)
    _, state = model.network(x, None, False)
    first, _ = model.network(y, state, False)
    model.network(2 * y, state, False)
    again, _ = model.network(y, state, False)
    assert torch.equal(first, again)
    for part in tensors(state):
        assert part.untyped_storage().nbytes() == part.nbytes


def tensors(state):
    if isinstance(state, torch.Tensor):
        yield state
    for part in state if isinstance(state, tuple) else ():
        yield from tensors(part)


def test_both_directions_take_no_parts():
    model = tiny(TINY)
    assert model.look_ahead is None
    with pytest.raises(UserError, match="SepMamba needs whole signals: its layers see both"):
        model.network(noise(1, 1, 50), None, False)


@pytest.mark.parametrize("config", [TINY, CAUSAL], ids=["both", "forward"])
def test_every_parameter_learns_and_examples_are_independent(config):
    model, mixture = tiny(config), noise(2, 1, 90)
    kept = mixture.clone()
    together = model(mixture)
    assert torch.equal(mixture, kept)
    torch.testing.assert_close(model(mixture[1:]), together[1:], rtol=0, atol=1e-12)
    together.square().mean().backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


@pytest.mark.parametrize("name", CONFIGS)
def test_every_published_size_is_read_off_its_tensors(name, tmp_path):
    """Tensors of the published names; other names than theirs are refused."""
    file = tmp_path / "published.pth"
    with torch.device("meta"):
        state = SepMamba(CONFIGS[name]).state_dict()
    torch.save({published(key): torch.zeros(t.shape) for key, t in state.items()}, file)
    assert speechlab.load(file, system=name).config == CONFIGS[name]
    for other in CONFIGS.keys() - {name}:
        with pytest.raises(UserError, match=f"these are the weights of {name}, not of {other}"):
            speechlab.load(file, system=other)


@pytest.mark.parametrize("system", CONFIGS)
def test_a_name_of_the_other_direction_is_refused(golden, system):
    file, causal = golden / "state.safetensors", golden.name == "small_causal"
    if system.endswith("_causal") == causal:
        assert speechlab.load(file, system=system).config.channels == (16, 32, 64)
        return
    told = "are causal" if causal else "look both ways"
    with pytest.raises(UserError, match=f"weights of a SepMamba {told}, those of {system} do not"):
        speechlab.load(file, system=system)


@pytest.mark.parametrize(
    ("drop", "told"),
    [
        ("down.0.conv1d.weight", "no 'encoder.0.down.weight'"),
        ("up.1.conv1d_fusion.bias", "lacks decoder.1.fusion.bias"),
        ("down.1.conv1d.bias", "lacks encoder.1.down.bias"),
    ],
)
def test_what_is_missing_is_named(golden, tmp_path, drop, told):
    state = load_file(golden / "state.safetensors")
    del state[drop]
    save_file(state, tmp_path / "broken.safetensors")
    with pytest.raises(UserError, match=told):
        speechlab.load(tmp_path / "broken.safetensors", system=GOLDEN[golden.name])
