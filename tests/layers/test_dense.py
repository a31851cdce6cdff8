"""Laws of dense encoder and decoders: shapes, receptive field, published activations."""

import pytest
import torch
from safetensors.torch import load_file

from speechlab.layers.dense import (
    ConvUnit,
    DenseBlock,
    Encoder,
    MagnitudeDecoder,
    PhaseDecoder,
    SubpixelConv,
)
from speechlab.weights.codec import rename_codec
from tests.support.phase_channels import PhaseChannels
from tests.support.signals import arrays, noise

CODECS = ("transposed", "subpixel")
PUBLISHED = {"transposed": "semamba/small_h16_n2", "subpixel": "mpsenet/small_c16"}
HALF = {"transposed": 100, "subpixel": 101}  # of 201 bins


def without_norms(layer):
    """A norm sees all frames; without it only the convolutions count."""
    for unit in layer.modules():
        if isinstance(unit, ConvUnit):
            unit.norm = torch.nn.Identity()
    return layer


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("n_frames", [1, 2, 17])
def test_shapes(codec, n_frames):
    hidden = Encoder(3, codec)(noise(2, 2, n_frames, 201))
    assert hidden.shape == (2, 3, n_frames, HALF[codec])
    assert DenseBlock(3, [3] * 4, codec)(hidden).shape == hidden.shape
    mask, phase = MagnitudeDecoder(3, 201, codec)(hidden), PhaseDecoder(3, codec)(hidden)
    assert mask.shape == phase.shape == (2, 201, n_frames)
    assert (mask >= 0).all() and (mask <= 2).all() and (phase.abs() <= 3.1416).all()


@pytest.mark.parametrize("codec", CODECS)
def test_what_an_output_sees(codec):
    """15 frames back (1 + 2 + 4 + 8), as many ahead where transposed; 4 bins to both sides."""
    block = without_norms(DenseBlock(2, [2] * 4, codec))
    x = noise(1, 2, 41, 15).requires_grad_()
    (seen,) = torch.autograd.grad(block(x)[0, :, 20, 7].sum(), x)
    frames = seen[0].abs().sum((0, 2)).nonzero().flatten()
    bins = seen[0].abs().sum((0, 1)).nonzero().flatten()
    last = 35 if codec == "transposed" else 20
    assert (frames.min(), frames.max()) == (5, last)
    assert (bins.min(), bins.max()) == (3, 11)


def test_a_dense_block_is_written_out():
    """Each layer on all before it, the newest first."""
    block, x = DenseBlock(2, [2] * 4, "transposed"), noise(1, 2, 9, 5)
    one, two, three, four = block.layers
    a = one(x)
    b = two(torch.cat([a, x], 1))
    c = three(torch.cat([b, a, x], 1))
    d = four(torch.cat([c, b, a, x], 1))
    assert torch.equal(block(x), d)


def test_subpixel_reads_its_channels_by_turns():
    """Output bin 2 f + k is channel half k at bin f."""
    layer, x = SubpixelConv(3, 3), noise(1, 3, 4, 6)
    wide = torch.nn.functional.conv2d(x, layer.conv.weight, layer.conv.bias, padding=(0, 1))
    y = layer(x)
    assert y.shape == (1, 3, 4, 12)
    torch.testing.assert_close(y[..., 0::2], wide[:, :3], rtol=0, atol=1e-6)
    torch.testing.assert_close(y[..., 1::2], wide[:, 3:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("codec", CODECS)
def test_examples_are_independent(codec):
    encoder, x = Encoder(4, codec), noise(2, 2, 30, 201)
    torch.testing.assert_close(encoder(x[1:]), encoder(x)[1:], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("codec", CODECS)
def test_published_encoders_and_decoders(shared, codec):
    """From the published spectra; masks from what the last published block gives."""
    folder = shared / "golden" / PUBLISHED[codec]
    state = load_file(folder / "state.safetensors")
    state = {rename_codec(name, codec): tensor for name, tensor in state.items()}

    def filled(layer, prefix):
        mine = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        layer.load_state_dict(mine)
        return layer

    names = ("h_block1", "pha") if codec == "transposed" else ("h_block3", "pha_b1")
    tensors = arrays(folder, "h_encoder", "noisy_mag", "noisy_pha", "h_mask", *names)
    hidden, noisy_mag, noisy_phase, wanted, last, wanted_phase = tensors
    spectra = torch.stack([noisy_mag, noisy_phase], 1)[: len(hidden)]
    found = filled(Encoder(16, codec), "encoder.")(spectra.transpose(2, 3))
    assert (found - hidden).abs().max() <= 1e-5
    mask = filled(MagnitudeDecoder(16, 201, codec), "mask_decoder.")(last)
    wanted = wanted[:, 0].transpose(1, 2) if wanted.dim() == 4 else wanted
    assert (mask - wanted).abs().max() <= 1e-5
    decoder = filled(PhaseDecoder(16, codec), "phase_decoder.")
    channels, phase = PhaseChannels(decoder), decoder(last)
    assert channels.error(phase, wanted_phase) <= 1e-5


def test_other_names_come_back_as_they_are():
    for name in ("TSMamba.0.tlinear.weight", "layers.0.weight", "mask", "dense_block.dense_block"):
        assert rename_codec(name, "transposed") == name
