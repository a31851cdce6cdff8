"""Encoder, masks, decoder: lengths, what each sample is covered by, the laws of the peers."""

from dataclasses import dataclass, replace

import pytest
import torch

from speechlab.config import Count, Size
from speechlab.errors import UserError
from speechlab.models import SYSTEMS
from speechlab.models.masking import MaskConvolution, MaskingModel
from tests.models.test_umambanet import VARIANTS
from tests.support.small_models import SMALL

PEERS = {name: SMALL[name] for name in ("conv_tasnet", "dprnn", "sepformer", "sudormrf")} | {
    f"umambanet {variant}": replace(SMALL["umambanet"], **changes)
    for variant, changes in VARIANTS.items()
}


@dataclass(frozen=True)
class Config:
    n_sources: Count = 3
    n_filters: Size = 5
    kernel_size: Size = 6
    stride: Size = 3
    encoder_activation: str = "none"
    mask_activation: str = "sigmoid"
    sample_rate: int = 8000


class Shares(MaskingModel):
    """Masks that say nothing of the signal: source s gets a share s + 1."""

    def masks(self, encoded):
        shares = torch.arange(1.0, 1 + self.n_sources, device=encoded.device)
        return shares[:, None, None] * torch.ones_like(encoded)[:, None]


@pytest.mark.parametrize("length", [1, 2, 6, 7, 8, 9, 100, 8003])
def test_the_output_is_as_long_as_the_input(length):
    model = Shares(Config())
    assert model(torch.randn(2, 1, length)).shape == (2, 3, length)
    padded = model.padded_length(length)
    assert padded >= length and (padded - 6) % 3 == 0
    assert padded == 6 or padded - length < 3  # no frame more than is needed


@pytest.mark.parametrize(("kernel", "stride"), [(6, 3), (7, 3), (4, 4), (5, 1)])
def test_it_is_the_sum_over_frames_written_out(kernel, stride):
    """Frame by frame in float64: products with the filters, masks, filters laid over each other."""
    model = Shares(Config(kernel_size=kernel, stride=stride, encoder_activation="relu")).double()
    mixture = torch.randn(1, 1, 20, dtype=torch.float64)
    n_frames = next(n for n in range(1, 21) if kernel + (n - 1) * stride >= 20)
    n_zeros = kernel + (n_frames - 1) * stride - 20
    padded = torch.cat([mixture[0, 0], torch.zeros(n_zeros, dtype=torch.float64)])
    analysis, synthesis = model.encoder.weight[:, 0], model.decoder.weight[:, 0]  # (N, kernel)
    expected = torch.zeros(3, len(padded), dtype=torch.float64)
    for start in range(0, len(padded) - kernel + 1, stride):
        encoded = (analysis @ padded[start : start + kernel]).clamp_min(0)  # (N,)
        for source in range(3):
            share = (source + 1) * encoded
            expected[source, start : start + kernel] += share @ synthesis
    torch.testing.assert_close(model(mixture)[0], expected[:, :20])


@pytest.mark.parametrize("length", range(1, 20))
def test_every_sample_is_covered(length):
    """A change of any sample changes the output there."""
    model = Shares(Config(n_filters=8)).double()
    mixture = torch.randn(1, 1, length, dtype=torch.float64)
    changes = torch.autograd.functional.jacobian(lambda x: model(x)[0, 0], mixture)[:, 0, 0]
    assert (changes.diagonal() != 0).all()


def test_masks_of_a_convolution():
    config = Config(n_sources=2)
    masks = MaskConvolution(4, config)(torch.randn(3, 4, 7))
    assert masks.shape == (3, 2, 5, 7)
    assert (masks > 0).all() and (masks < 1).all()
    config = replace(config, mask_activation="relu")
    assert MaskConvolution(4, config)(torch.randn(3, 4, 7)).min() == 0


def test_it_tells_what_it_is():
    model = Shares(Config())
    assert (model.sample_rate, model.n_sources, model.hop_length) == (8000, 3, 3)
    assert model.look_ahead is None and model.needs_whole


def test_macs_are_those_of_encoder_and_decoder():
    """A product per weight and frame; the decoder once for each source."""
    assert Shares(Config()).macs(3.0) == pytest.approx(3 * 8000 / 3 * 5 * 6 * (1 + 3))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stride": 7}, "stride 7 skips samples between frames of 6"),
        ({"n_filters": 0}, "n_filters must be 1 to 65536, not 0"),
        ({"n_sources": -1}, "n_sources must be 1 to 256, not -1"),
    ],
)
def test_sizes_that_build_no_model_are_named(changes, said):
    with pytest.raises(UserError, match=said):
        Shares(replace(Config(), **changes))


@pytest.fixture(params=PEERS)
def peer(request):
    return SYSTEMS[request.param.split()[0]][1](PEERS[request.param]).eval()


@pytest.mark.parametrize("n_sources", [1, 3])
@torch.inference_mode()
def test_peers_give_as_many_sources_as_asked(peer, n_sources):
    other = type(peer)(replace(peer.config, n_sources=n_sources))
    assert other(torch.randn(2, 1, 100)).shape == (2, n_sources, 100)


def test_gradients_reach_every_parameter(peer):
    peer.train()(torch.randn(2, 1, 1000)).square().mean().backward()
    idle = [n for n, p in peer.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


@torch.inference_mode()
def test_the_level_of_the_mixture_is_that_of_the_sources(peer):
    """The first norm takes it out, no bias stands before it; silence stays silent."""
    peer, mixture = peer.double(), torch.randn(1, 1, 900, dtype=torch.float64)
    torch.testing.assert_close(peer(8 * mixture), 8 * peer(mixture), rtol=1e-3, atol=1e-5)
    assert not peer(0 * mixture).any()
