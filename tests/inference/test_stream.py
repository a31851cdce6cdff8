"""The chunk law: a stream gives the samples of the file, whatever the chunks."""

import itertools

import numpy as np
import pytest
import torch

import speechlab
from speechlab.audio import files
from speechlab.cli import main
from speechlab.config import override
from speechlab.errors import UserError
from speechlab.inference.stream import PATHS, Stream
from speechlab.layers.mixers import MIXERS
from speechlab.models import SYSTEMS, semamba_basic, sepmamba
from speechlab.models.baselines.wiener import WienerFilter
from speechlab.models.cleanumamba import CleanUMamba, ablation_config
from speechlab.models.semamba_basic import LogFrontEnd, SEMambaBasic
from speechlab.models.sepmamba import SepMamba
from speechlab.weights.checkpoints import save
from tests.support.small_models import SMALL

TINY, SOURCES, BASIC = SMALL["cleanumamba"], SMALL["sepmamba"], SMALL["semamba_basic"]
BASICS = {
    "mamba": BASIC,
    "transformer": override(
        BASIC,
        sequence_layer="transformer",
        layer={"n_heads": 2, "d_inner": 12, "d_hidden": 10, "window": 6},
    ),
}
STREAMING = {"cleanumamba": TINY, "sepmamba": SOURCES} | BASICS
ABOUT_16 = (1, 7, 8, 15, 16, 17, 23, 150)
CASES = {
    "cleanumamba": (TINY, (1, 7, 8, 22, 23, 24, 150)),
    "sepmamba": (SOURCES, (1, 2, 18, 19, 20, 21, 22, 47, 150)),
} | {
    f"{name}, hop {hop}": (override(config, front_end=LogFrontEnd(16, hop)), ABOUT_16)
    for name, config in BASICS.items()
    for hop in (8, 4)
}
CASES |= {
    f"{name}, leak": (override(config, sample_rate=1000, state_leak_s=0.1), (24, 150))
    for name, config in STREAMING.items()
    if name != "transformer"
}
CHECKPOINTS = [
    *(f"Experiment_CleanU_{mixer}" for mixer in ("Mamba", "Mamba2", "MambaS4", "LSTM", "MHA")),
    *(f"CleanUMamba-3N-E8_pruned-{size}" for size in ("200K", "500K", "1M", "2M")),
    "CleanUMamba-3N-E6_pruned-500k",
]


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return CleanUMamba(TINY).double().eval()


def built(config):
    return next(kind for known, kind in SYSTEMS.values() if type(config) is known)(config)


def streamed(stream: Stream, noisy: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Chunks of `sizes` over and over, the end in a shorter one, then flush."""
    parts, start = [], 0
    while start < noisy.shape[-1]:
        size = sizes[len(parts) % len(sizes)]
        parts.append(stream.feed(noisy[..., start : start + size]))
        start += size
    return torch.cat([*parts, stream.flush()], -1)


@pytest.mark.parametrize(("config", "lengths"), CASES.values(), ids=CASES)
def test_chunk_law(config, lengths):
    """Float64, every length about a frame, chunks of one sample, of a hop, coprime, longer."""
    torch.manual_seed(0)
    model = built(override(config, normalize="running")).double().eval()
    for length in lengths:
        noisy = torch.randn(2, 1, length, dtype=torch.float64)
        offline = model(noisy)
        for sizes in ([1], [2], [3, 5], [8], [300], [1, 40, 2]):
            estimate = streamed(Stream(model), noisy, sizes)
            torch.testing.assert_close(estimate, offline, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("name", "gain"), [("causal", 10), ("transformer_causal", 1)])
def test_chunk_law_of_spectra_on_speech(shared, name, gain, dtype, bound):
    """The published sizes on real noisy speech: flush included."""
    torch.manual_seed(0)
    model = SEMambaBasic(semamba_basic.CONFIGS[name]).to(dtype).eval()
    with torch.no_grad():
        model.magnitudes.head.weight *= gain  # as drawn, that of Mamba gives next to nothing
    (file, *_) = sorted((shared / "audio/pairs/voicebank_demand_train/noisy").iterdir())
    noisy = files.load(file, model.sample_rate)[0][:1, None, 8000:].to(dtype)
    for sizes, length in (([1], 1400), ([61], 4001), ([256, 997, 3000], 8001)):
        with torch.inference_mode():
            offline = model(noisy[..., :length])
        assert offline.abs().max() > 1e-2
        estimate = streamed(Stream(model), noisy[..., :length], sizes)
        assert (estimate - offline).abs().max() <= bound


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_chunk_law_on_speech_with_published_weights(shared, name):
    """Real noisy speech, float32: chunks of a sample, a hop, of primes, of 3000; with flush."""
    noisy = np.load(shared / "golden/cleanumamba/p257_152.input.npy").ravel()[8000:16001]
    noisy = torch.from_numpy(noisy)[None, None]
    checkpoint = shared / "upstream_checkpoints/cleanumamba" / f"{name}.pkl"
    model = speechlab.load(checkpoint, normalize="running")
    with torch.inference_mode():
        offline = model(noisy)
    cuts = [256], [997, 61], [3000], [600, *[1] * 600, 7000]  # single samples across two hops
    for path, sizes in itertools.product(PATHS, cuts):
        estimate = streamed(Stream(model, path), noisy, sizes)
        assert estimate.shape == offline.shape
        assert (estimate - offline).abs().max() <= 1e-5


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["Mamba", "Mamba2", "MambaS4"])
def test_a_leaking_stream_is_the_leaking_file(shared, name, path):
    """A leak of 0.16 per frame; without it the samples are others."""
    noisy = np.load(shared / "golden/cleanumamba/p257_152.input.npy").ravel()[8000:17001]
    noisy = torch.from_numpy(noisy)[None, None]
    checkpoint = shared / f"upstream_checkpoints/cleanumamba/Experiment_CleanU_{name}.pkl"
    plain, leaky = (
        speechlab.load(checkpoint, normalize="none", state_leak_s=s) for s in (None, 0.1)
    )
    with torch.inference_mode():
        offline = leaky(noisy)
        assert (plain(noisy) - offline).abs().max() > 1e-3
    assert (streamed(Stream(leaky, path), noisy, [997]) - offline).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("weights", "sizes", "length"),
    [
        ("published", [1], 701),
        ("published", [61], 4001),
        ("published", [256, 997, 3000], 8001),
        ("drawn", [61], 1301),
        ("drawn", [256, 997, 3000], 5001),
    ],
)
def test_chunk_law_on_mixtures(shared, weights, sizes, length):
    """Two speakers each, float32: reference weights of a reduced width; S as drawn."""
    torch.manual_seed(0)
    model = SepMamba(sepmamba.CONFIGS["sepmamba_s_causal"]).eval()
    if weights == "published":
        file = shared / "golden/sepmamba/small_causal/state.safetensors"
        model = speechlab.load(file, system="sepmamba_s_causal")
    paths = sorted((shared / "audio/mix2/libri2mix_dev_8k/mix").iterdir())[:2]
    mixtures = [files.load(file, 8000)[0][:1, 8000 : 8000 + length] for file in paths]
    mixtures = torch.stack(mixtures)  # (2, 1, T)
    with torch.inference_mode():
        offline = model(mixtures)
    assert offline.shape == (2, 2, length) and offline.std(-1).min() > 1e-3
    assert (streamed(Stream(model), mixtures, sizes) - offline).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "config", [TINY, SOURCES, *BASICS.values()], ids=["tiny", "sources", *BASICS]
)
def test_samples_come_as_soon_as_they_are_settled(config):
    """After n samples, at least n - latency are out, and what is out never changes."""
    tiny = built(config).double().eval()
    stream, n_out = Stream(tiny), 0
    noisy = torch.randn(1, 1, 90, dtype=torch.float64)
    for n_in, sample in enumerate(noisy.split(1, -1), 1):
        n_out += stream.feed(sample).shape[-1]
        assert n_in - stream.latency <= n_out <= n_in
    assert stream.latency == tiny.look_ahead
    assert stream.latency_ms == pytest.approx(1000 * tiny.look_ahead / tiny.sample_rate)


def test_streams_on_one_model_are_independent(tiny):
    noisy = torch.randn(2, 1, 60, dtype=torch.float64)
    one, two = Stream(tiny), Stream(tiny)
    parts = [[], []]
    for chunk in noisy.split(7, -1):
        parts[0].append(one.feed(chunk[:1]))
        parts[1].append(two.feed(chunk[1:]))
    for i, stream in enumerate((one, two)):
        estimate = torch.cat([*parts[i], stream.flush()], -1)
        torch.testing.assert_close(estimate, tiny(noisy[i : i + 1]), rtol=0, atol=1e-9)


def steady():
    """Configurations whose windows are full after 12 hops, and paths."""
    for mixer in MIXERS:
        config = override(ablation_config(mixer), normalize="running")
        if mixer == "mha":
            config = override(config, layers=[{"n_heads": 4, "d_hidden": 128, "window": 8}] * 3)
        yield from (pytest.param(config, path, id=f"{mixer}-{path}") for path in PATHS)
    yield from (pytest.param(config, None, id=name) for name, config in STREAMING.items())


@pytest.mark.parametrize(("config", "path"), list(steady()))
def test_state_has_a_constant_size(config, path):
    """For every mixer and model; a flushed stream starts anew."""
    torch.manual_seed(0)
    model = built(config).eval()
    stream, sizes = Stream(model, path), set()
    for i in range(30):
        stream.feed(torch.randn(1, 1, model.hop_length))
        if i >= 12:
            sizes.add(stream.state_bytes)
    assert len(sizes) == 1
    stream.flush()
    assert stream.state_bytes == 0
    noisy = torch.randn(1, 1, 1000)
    with torch.inference_mode():
        torch.testing.assert_close(streamed(stream, noisy, [300]), model(noisy), rtol=0, atol=1e-5)


def test_a_state_can_be_continued_from_twice():
    """Nothing of a stream is on the model, and nothing is written over."""
    model = SEMambaBasic(BASIC).double().eval()
    x, y = torch.randn(2, 1, 1, 50, dtype=torch.float64)
    _, state = model.network(x, None, False)
    first, _ = model.network(y, state, False)
    model.network(2 * y, state, False)
    again, _ = model.network(y, state, False)
    assert torch.equal(first, again)


@pytest.mark.parametrize("config", [TINY, SOURCES], ids=["tiny", "sources"])
def test_utterance_level_is_refused_with_the_remedy(config):
    model = built(override(config, normalize="utterance"))
    told = (
        f'^{type(model).__name__} with normalize="utterance" needs the whole signal before its '
        'first sample; to stream, load it with normalize="running"$'
    )
    with pytest.raises(UserError, match=told):
        Stream(model)


def whole_models():
    """Every model that no level makes causal."""
    both = override(BASIC, direction="both", normalize="running")
    yield SEMambaBasic(both)
    yield WienerFilter()
    with torch.device("meta"):
        for name, (_, kind) in SYSTEMS.items():
            if name not in ("cleanumamba", "semamba_basic"):
                yield kind()


def test_what_sees_the_whole_is_refused_with_its_name_and_why():
    for model in whole_models():
        kind = type(model).__name__
        with pytest.raises(UserError, match=f"^{kind} cannot stream: its? .*;") as told:
            Stream(model)
        assert "normalize" not in str(told.value) and "\n" not in str(told.value)
        command = "separate" if model.n_sources > 1 else "enhance"
        assert f"use `speechlab {command}` for files" in str(told.value)


@pytest.mark.parametrize("command", [["stream", "--input"], ["enhance", "--stream"]], ids=str)
def test_the_commands_refuse_what_sees_the_whole(command, tmp_path, capsys):
    """One line that names the file, the model and why; exit code 2; no device is opened."""
    model = SEMambaBasic(override(BASIC, direction="both", normalize="running"))
    checkpoint = save(tmp_path / "whole.safetensors", model)
    files.save(tmp_path / "in.wav", torch.zeros(1, 1600), 16000)
    words = ["--checkpoint", str(checkpoint), "--output", str(tmp_path / "out.wav")]
    assert main.main([*command, str(tmp_path / "in.wav"), *words]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"speechlab: {checkpoint}: SEMambaBasic cannot stream: its layers see")
    assert told.count("\n") == 1 and not (tmp_path / "out.wav").exists()


def test_flush_of_nothing_is_nothing(tiny):
    assert Stream(tiny).flush().shape == (1, 1, 0)
    assert Stream(SepMamba(SOURCES)).flush().shape == (1, 3, 0)


def test_the_fast_path_is_chosen_where_it_can_be(tiny):
    assert Stream(CleanUMamba(TINY)).path == "fused"
    assert Stream(tiny).path == "modules"  # float64
    with pytest.raises(UserError, match="float32"):
        Stream(tiny, "fused")
    with pytest.raises(UserError, match="no path 'quick'"):
        Stream(tiny, "quick")
    with pytest.raises(UserError, match="no level of a stream 'loud'"):
        Stream(tiny, level="loud")
