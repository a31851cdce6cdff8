"""A stream of a day: no counter runs out, no error piles up, silence leaves nothing behind.

Here the network has its laws, for every mixer and both paths; the level's are in
`test_streaming.py`.
"""

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

import speechlab
from speechlab.config import override
from speechlab.inference.stream import PATHS, Stream
from speechlab.layers.mixers import MIXERS
from speechlab.models.cleanumamba import CleanUMamba, CleanUMambaConfig

DAY = 24 * 3600 * 16000  # samples
WINDOW = 50  # frames that attention sees
TINY = CleanUMambaConfig(
    down_channels=(5, 6),
    skip_channels=(4, 7),
    up_channels=(6, 5),
    d_model=12,
    normalize="none",
)
LAYERS = {
    "mamba": {"d_state": 6},
    "mamba2": {"d_state": 6, "d_head": 6},
    "mamba_s4": {"n_channels": 3, "d_state": 8},
    "lstm": {},
    "mha": {"n_heads": 3, "window": WINDOW, "d_hidden": 20},
}


@pytest.fixture(params=PATHS)
def path(request):
    return request.param


def tiny(mixer: str) -> CleanUMamba:
    """Two levels, a hop of 4 samples, two mixers; weights doubled, so that memory is heard.

    Without its memory the output changes by 2 % (lstm) to 90 % (mamba) of its deviation.
    """
    torch.manual_seed(0)
    model = CleanUMamba(override(TINY, mixer=mixer, layers=[LAYERS[mixer]] * 2)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(2 if "weight" in name else 1)
    return model


def restless(n_samples: int) -> Tensor:
    """Noise that comes and goes on a small offset, (1, 1, n_samples)."""
    loudness = 0.1 + torch.sin(torch.arange(n_samples) / 700).clamp(min=0)
    return (torch.randn(n_samples) * loudness + 0.05)[None, None]


def fed(stream: Stream, noisy: Tensor, size: int) -> Tensor:
    return torch.cat([stream.feed(chunk) for chunk in noisy.split(size, -1)], -1)


def arrays(state: object) -> Iterator[np.ndarray]:
    """All that is in nested tuples."""
    for part in state if isinstance(state, tuple) else (state,):
        yield from arrays(part) if isinstance(part, tuple) else (np.asarray(part),)


def n_subnormal(values: np.ndarray) -> int:
    """Numbers so small that many processors slow down with them."""
    return int(((values != 0) & (abs(values) < np.finfo(values.dtype).tiny)).sum())


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_day_on_the_counter_changes_no_bit(mixer, path):
    """`_n_in` is all that a stream counts on: a day of it, and where integers of 32 bits end."""
    model, noisy = tiny(mixer), torch.randn(1, 1, 1503)
    begun, rest = noisy.split(801, -1)
    stream, found = Stream(model, path), []
    for advance in (0, DAY, 2**31, 2**32, 2**53):
        fed(stream, begun, 37)
        assert [k for k, v in vars(stream).items() if isinstance(v, int | float)] == ["_n_in"]
        stream._n_in += advance
        found.append(torch.cat([fed(stream, rest, 29), stream.flush()], -1))
    assert all(torch.equal(estimate, found[0]) for estimate in found)


@pytest.mark.parametrize("mixer", MIXERS)
def test_whole_numbers_in_the_network_stay_within_two_windows(mixer, path):
    """They are places in attention's store, which goes round; all else is float."""
    stream, largest = Stream(tiny(mixer), path), 0
    for chunk in torch.randn(1, 1, 40 * WINDOW).split(36, -1):
        stream.feed(chunk)
        found = [part for part in arrays(stream._network_state) if part.dtype.kind != "f"]
        assert all(part.size == 1 and part.dtype == np.int64 for part in found)
        largest = max([largest, *(part.item() for part in found)])
    assert largest <= 2 * WINDOW


@pytest.mark.parametrize("mixer", MIXERS)
def test_rounding_does_not_pile_up(mixer, path):
    """10,000 frames against the same model in float64 on the whole: no worse late than early.

    The slowest memories of these mixers last about a thousand frames, well within a quarter.
    """
    model, noisy = tiny(mixer), restless(40_000)
    with torch.inference_mode():
        exact = copy.deepcopy(model).double()(noisy.double())
    stream = Stream(model, path)
    error = torch.cat([fed(stream, noisy, 1000), stream.flush()], -1) - exact
    first, *_, last = (quarter.square().mean().sqrt() for quarter in error.chunk(4, -1))
    assert last <= 1.5 * first
    assert error.abs().max() <= 1e-5 * exact.abs().max()


@pytest.mark.parametrize("mixer", MIXERS)
def test_silence_leaves_nothing_behind(mixer, path):
    """Noise, 10,000 frames of digital silence, noise: finite, normal numbers, the file's samples.

    Columns of attention's store that no frame has reached hold anything: outputs tell there.
    """
    model, loud, silence = tiny(mixer), restless(2000), torch.zeros(1, 1, 1000)
    stream = Stream(model, path)
    estimate = [fed(stream, loud, 500)]
    for _ in range(40):
        estimate.append(stream.feed(silence))
        state = [estimate[-1].numpy(), *(arrays(stream._network_state) if mixer != "mha" else ())]
        assert all(np.isfinite(part).all() and n_subnormal(part) == 0 for part in state)
    estimate += [fed(stream, loud, 500), stream.flush()]
    with torch.inference_mode():
        wanted = model(torch.cat([loud, silence.repeat(1, 1, 40), loud], -1))
    torch.testing.assert_close(torch.cat(estimate, -1), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "n_clips", "n_window"),
    [("Experiment_CleanU_MHA", 7, 2048), ("CleanUMamba-3N-E8_pruned-200K", 2, 4)],
)
def test_published_weights_on_many_seconds(shared, name, n_clips, n_window):
    """Attention's window is full after 32.8 s, the step path's store of two goes round at 65.5 s.

    n_clips: of 10 s. The stream is the file; its state keeps its size from `n_window` frames on.
    """
    folder = shared / "audio/pairs/dns2020_no_reverb/noisy"
    clips = [soundfile.read(file, dtype="float32")[0] for file in sorted(folder.iterdir())]
    noisy = torch.from_numpy(np.concatenate(clips[:n_clips]))[None, None]
    checkpoint = shared / "upstream_checkpoints/cleanumamba" / f"{name}.pkl"
    model = speechlab.load(checkpoint, normalize="none")
    size = 40 * model.hop_length
    assert noisy.shape[-1] > 2 * n_window * model.hop_length
    with torch.inference_mode():
        offline = model(noisy)
    for path in PATHS:
        stream, estimate, sizes = Stream(model, path), [], set()
        for i, chunk in enumerate(noisy.split(size, -1)):
            estimate.append(stream.feed(chunk))
            if 40 * i >= n_window and chunk.shape[-1] == size:
                sizes.add(stream.state_bytes)
        estimate.append(stream.flush())
        assert (torch.cat(estimate, -1) - offline).abs().max() <= 1e-5
        assert len(sizes) == 1
