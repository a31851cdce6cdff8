"""Long recordings in overlapping chunks: as the whole, in flat memory."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

import speechlab
from speechlab.audio import files
from speechlab.audio.spectrum import FrontEnd
from speechlab.config import override
from speechlab.errors import UserError
from speechlab.inference.enhance import enhance_blocks
from speechlab.inference.long_recordings import in_one_pass, overlapped
from speechlab.models.mpsenet import MPSENetMamba, MPSENetMambaConfig
from speechlab.models.semamba_basic import CONFIGS, SEMambaBasic
from speechlab.models.spectral import SpectralModel
from tests.inference.test_enhance import whole

CUT = 2.0, 0.8  # seconds of a chunk, and of what two share
SEAM = slice(19200, 32000)


@dataclass(frozen=True)
class ToyConfig:
    front_end: FrontEnd = field(default_factory=FrontEnd)
    sample_rate: int = 16000
    normalize: str = "rms"


class Toy(SpectralModel):
    """Encoder and decoders with nothing between them."""

    def __init__(self) -> None:
        super().__init__(ToyConfig(), 4, "transposed")

    def between(self, x):
        return x, x


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Toy().eval()
    for module in model.modules():
        if isinstance(module, nn.InstanceNorm2d):
            nn.init.normal_(module.bias, std=0.5)
    return model


def recording(seconds, n_channels=1):
    """Noise whose level and colour change: each chunk has other moments than the whole.

    Silent at both ends: a frame that is mirrored there is real, and whether its phase is pi or
    -pi, which the encoder sees, is a matter of rounding.
    """
    generator = torch.Generator().manual_seed(1)
    noise = 0.05 * torch.randn(n_channels, round(16000 * seconds), generator=generator)
    time = torch.arange(noise.shape[-1]) / 16000
    loud = 0.2 + (2 * torch.pi * time / 3).sin().square()
    smooth = (noise[:, 1:] + noise[:, :-1]) / 2
    noise = (
        torch.where(time.remainder(2.5) < 1, torch.cat([smooth, noise[:, :1]], -1), noise) * loud
    )
    noise[:, :400] = noise[:, -400:] = 0
    return noise


@pytest.fixture
def speech(shared):
    """Real noisy speech, (1, 44800)."""
    pairs = sorted((shared / "audio/pairs/voicebank_demand_train/noisy").glob("p226*.flac"))
    return torch.cat([files.load(path)[0] for path in pairs[:2]], -1)[:, :44800]


def in_blocks(waveform, length=7001):
    return list(waveform.split(length, -1))


def in_chunks(model, noisy, chunk_s=2.0, overlap_s=0.5, length=7001):
    return torch.cat(list(overlapped(model, in_blocks(noisy, length), chunk_s, overlap_s)), -1)


def difference_db(estimate, wanted):
    return 10 * ((estimate - wanted).square().mean() / wanted.square().mean()).log10()


def test_what_fits_into_a_chunk_is_the_model_itself(model):
    noisy = recording(1, 2)
    assert torch.equal(in_chunks(model, noisy, None, None), whole(model, noisy))


@pytest.mark.parametrize("seconds", [2.5, 4.003])
def test_chunks_agree_with_the_whole(model, seconds):
    noisy = recording(seconds, 2)
    estimate, wanted = in_chunks(model, noisy), whole(model, noisy)
    assert estimate.shape == noisy.shape
    assert difference_db(estimate, wanted) < -60
    for seam in range(24000, noisy.shape[-1] - 8000, 24000):  # and nowhere worse
        around = slice(seam, seam + 8000)
        assert difference_db(estimate[:, around], wanted[:, around]) < -60


@pytest.mark.parametrize(
    ("reference", "system", "wanted_db"),
    [
        ("semamba/small_h16_n2", "semamba_advanced", -50),
        ("mpsenet/small_c16", "mpsenet", -40),  # attention over all frames of a chunk, not of all
    ],
)
def test_published_systems_on_speech(shared, speech, reference, system, wanted_db):
    model = speechlab.load(shared / "golden" / reference / "state.safetensors", system=system)
    estimate = in_chunks(model, speech, *CUT)[:, SEAM]
    assert difference_db(estimate, whole(model, speech)[:, SEAM]) < wanted_db


def test_both_directions_without_norms_take_one_pass(speech):
    """The non-causal basic SEMamba, at small size: an iterator is enough."""
    torch.manual_seed(0)
    config = override(
        CONFIGS["bidirectional"], channels=(64, 32, 16, 32), layer={"d_state": 16, "expand": 4}
    )
    model = SEMambaBasic(config).eval()
    noisy = speech * torch.tensor([[1.0], [0.1]])
    estimate = torch.cat(list(in_one_pass(model, iter(in_blocks(noisy)), *CUT)), -1)
    wanted = whole(model, noisy)
    assert estimate.shape == noisy.shape
    assert difference_db(estimate[:, SEAM], wanted[:, SEAM]) < -50
    short = torch.cat(list(enhance_blocks(model, iter(in_blocks(noisy)))), -1)
    torch.testing.assert_close(short, wanted, rtol=0, atol=1e-6)


def test_a_chunk_is_as_long_as_the_model_can(model):
    assert model.chunk_s == 30
    named, published = (
        MPSENetMamba(MPSENetMambaConfig(d_model=4, n_shared_blocks=1, n_branch_blocks=1, axes=axes))
        for axes in ("named", "published")
    )
    assert (named.chunk_s, published.chunk_s) == (10, 30)
    with pytest.raises(UserError, match="cannot overlap"):
        in_chunks(model, recording(3), 2.0, 1.5)


def test_the_cut_of_the_blocks_does_not_matter(model):
    noisy = recording(3)
    one, other = (in_chunks(model, noisy, length=n) for n in (501, 96000))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_channels_are_signals_of_their_own(model):
    noisy = recording(3, 2)
    both, alone = in_chunks(model, noisy), in_chunks(model, noisy[1:])
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-6)


def test_the_model_never_gets_more_than_a_chunk(model):
    seen = []
    handle = model.encoder.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape))
    try:
        n_out = sum(y.shape[-1] for y in overlapped(model, in_blocks(recording(4.5)), 2.0, 0.5))
    finally:
        handle.remove()
    assert n_out == 72000 and {shape[2] for shape in seen[:2]} == {321}
    assert max(shape[2] for shape in seen) == 321  # frames of 2 s
    assert len(seen) == 3 * 7  # three chunks: for each of the norms, and once more


def test_silence_stays_finite_and_an_iterator_is_refused(model):
    silence = torch.zeros(1, 3 * 16000)
    assert in_chunks(model, silence).isfinite().all()
    with pytest.raises(UserError, match="as a list"):
        list(overlapped(model, iter(in_blocks(silence))))
