"""Mixtures in, talkers out: the model's samples, one order in a file, the contract of files."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
import torch

from speechlab.audio import files
from speechlab.cli import main
from speechlab.config import override
from speechlab.errors import UserError
from speechlab.evaluation.cost import peak_memory
from speechlab.inference import batch, separate
from speechlab.inference.enhance import enhance_all, enhance_blocks, enhance_file, load_causal
from speechlab.inference.separate import separate_all, separate_blocks, separate_file
from speechlab.models.baselines.conv_tasnet import ConvTasNet, ConvTasNetConfig
from speechlab.models.cleanumamba import CleanUMamba, CleanUMambaConfig
from speechlab.models.sepmamba import SepMamba, SepMambaConfig
from speechlab.weights.checkpoints import load, save
from tests.inference.test_enhance import BAD, GOOD, break_file, noise, write
from tests.support.separation_toys import RATE, Splitter, flips, talk

TINY = ConvTasNetConfig(
    n_filters=8, d_model=6, d_skip=6, d_hidden=8, n_blocks=2, n_repeats=1, n_sources=2
)
WHOLE = SepMambaConfig(
    channels=(4, 6), kernel_sizes=(6, 4), n_blocks=1, layer={"d_state": 3}, n_sources=3
)
ROOT = Path(separate.__file__).parents[1]


def tiny(config=TINY):
    torch.manual_seed(0)
    return {ConvTasNetConfig: ConvTasNet, SepMambaConfig: SepMamba}[type(config)](config).eval()


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors", tiny())


def whole(model, waveform):
    """The reference: (C, T) -> (C, S, T) at once, each channel on its own."""
    with torch.inference_mode():
        return torch.cat([model(channel[None, None]) for channel in waveform])


def run(model, *inputs, output, **settings):
    return separate_all(model, inputs, output, progress=False, **settings)


def rows(folder):
    with (folder / "separate.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# The samples


@pytest.mark.parametrize("config", [TINY, WHOLE], ids=["conv_tasnet", "sepmamba"])
@pytest.mark.parametrize("sizes", [[1] * 50, [5000], [3, 1999, 0, 2998], [7]])
def test_what_fits_into_a_chunk_is_the_model_itself(config, sizes):
    model, mixture = tiny(config), noise(1, sum(sizes))
    estimate = torch.cat(list(separate_blocks(model, iter(mixture.split(sizes, -1)))), -1)
    assert torch.equal(estimate, whole(model, mixture))


def test_chunks_agree_with_the_whole():
    """Of a model that sees both directions, and no more of the whole than its states remember."""
    model, mixture = tiny(WHOLE), noise(2, 50000)
    estimate = torch.cat(list(separate_blocks(model, mixture.split(7001, -1), chunk_s=2.0)), -1)
    wanted = whole(model, mixture)
    assert estimate.shape == wanted.shape
    assert (estimate - wanted).square().mean() < 1e-6 * wanted.square().mean()  # -60 dB


@pytest.mark.parametrize("sizes", [[1] * 300, [20001], [3, 8000, 0, 9001], [7]])
def test_a_model_that_streams_has_no_seams(sizes):
    model, mixture = tiny(override(WHOLE, direction="forward")), noise(1, sum(sizes))
    blocks = separate_blocks(model, mixture.split(sizes, -1), chunk_s=1.0)
    estimate = torch.cat(list(blocks), -1)
    assert estimate.shape == (1, 3, sum(sizes))
    assert (estimate - whole(model, mixture)).abs().max() < 1e-5


def test_channels_of_a_stream_have_one_order():
    """A model that swaps the channels' talkers, once and for all."""
    streaming = tiny(override(WHOLE, direction="forward"))
    network = streaming.network

    def swapping(x, state, last):
        x, state = network(x, state, last)
        return torch.stack([x[0], x[1, [2, 0, 1]]]), state

    streaming.network = swapping
    mixture = noise(1, 9000).repeat(2, 1) * torch.tensor([[1.0], [0.5]])
    mixture *= 1 + torch.sin(torch.arange(9000) / 300)
    estimate = torch.cat(list(separate_blocks(streaming, [mixture], chunk_s=1.0)), -1)
    power = estimate.square().sum(-1)
    assert power[0].argsort().tolist() == power[1].argsort().tolist()


def test_thirty_minutes_without_a_flip(tmp_path):
    """Talkers who take turns, talk at once and pause; from a file to files."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(700, 2, generator=generator)
    schedule = [(0.5 + 8 * float(a) ** 2, int(4 * b)) for a, b in drawn]
    schedule[20:20] = [(50, 0)]  # longer than a chunk
    sources = talk(schedule)[:, : 1800 * RATE]
    soundfile.write(tmp_path / "in.wav", sources.sum(0).numpy(), RATE, "FLOAT")
    model, targets = Splitter(hiss=0.003), [tmp_path / "1.wav", tmp_path / "2.wav"]
    result = separate_file(model, tmp_path / "in.wav", targets)
    estimates = torch.cat([files.load(target)[0] for target in targets])
    assert result.seconds == 1800
    assert min(map(model.orders.count, [(0, 1), (1, 0)])) > 20
    assert flips(estimates, sources) == 0


def _of_noise(path, minutes):
    """Separate a file of so many minutes at 1 kHz."""
    with files.Writer(path, RATE, 1, "PCM_16") as writer:
        for i in range(minutes):
            writer.write(noise(1, 60 * RATE, seed=i))
    separate_file(Splitter(), path, [f"{path}.s1.wav", f"{path}.s2.wav"])


def test_memory_is_that_of_two_minutes(tmp_path):
    short, long = (peak_memory(_of_noise, tmp_path / f"{n}.wav", n) for n in (2, 30))
    assert soundfile.info(tmp_path / "30.wav.s2.wav").frames == 1800 * RATE
    assert not long > short + 4e6  # the mixture alone has 7.2 MB


# What is refused


def test_each_command_names_the_other(tmp_path, checkpoint, model):
    sizes = {"down_channels": (4,), "skip_channels": (4,), "up_channels": (4,), "d_model": 8}
    enhancer = CleanUMamba(CleanUMambaConfig(**sizes, layers=({"d_state": 4},)))
    with pytest.raises(UserError, match=r"CleanUMamba .*`speechlab enhance`"):
        run(enhancer, tmp_path, output=tmp_path / "out")
    with pytest.raises(UserError, match="`speechlab enhance`"):
        separate_blocks(enhancer, [noise()])
    for refused in (
        lambda: enhance_all(model, [tmp_path], tmp_path / "out"),
        lambda: enhance_file(model, tmp_path / "a.wav", tmp_path / "b.wav"),
        lambda: enhance_blocks(model, [noise()]),
        lambda: load_causal(checkpoint),
    ):
        with pytest.raises(UserError, match=r"ConvTasNet .*`speechlab separate`"):
            refused()


@pytest.mark.parametrize(
    "settings",
    [{"chunk_s": 0.5}, {"chunk_s": float("nan")}, {"subtype": "X"}, {"level": "loud"}],
)
def test_wrong_settings_are_told_before_any_work(tmp_path, model, settings):
    files.save(tmp_path / "a.wav", noise(), 8000)
    with pytest.raises(UserError, match=r"chunks of|no subtype|no level"):
        run(model, tmp_path / "a.wav", output=tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_sources_of_a_set_are_no_estimates(tmp_path, model, overwrite):
    """Neither skipped, to be scored as perfect, nor overwritten."""
    for part in ("mix", "s1", "s2"):
        files.save(tmp_path / part / "a.wav", noise(), 8000)
    before = (tmp_path / "s1/a.wav").read_bytes()
    with pytest.raises(UserError, match=r"s1/a.wav: is there, and separate.csv does not tell"):
        run(model, tmp_path / "mix", output=tmp_path, overwrite=overwrite)
    with pytest.raises(UserError, match="is an input, and would be overwritten"):
        run(model, tmp_path / "s1/a.wav", output=tmp_path, overwrite=overwrite)
    with pytest.raises(UserError, match="is an input, and would be overwritten"):
        run(model, tmp_path / "s2/a.wav", output=tmp_path, overwrite=overwrite)
    assert (tmp_path / "s1/a.wav").read_bytes() == before


# Every kind of file


@pytest.mark.parametrize("kind", GOOD)
def test_good_files(tmp_path, model, kind):
    """Rate, channels, frames and, where WAV has it, the subtype stay, in every talker's file."""
    source = tmp_path / "in" / GOOD[kind]
    source.parent.mkdir(parents=True)
    rate, (n_channels, n_frames), subtype = write(source, kind)
    [result] = run(model, tmp_path / "in", output=tmp_path / "out")
    for part in ("s1", "s2"):
        target = (tmp_path / "out" / part / GOOD[kind]).with_suffix(".wav")
        with target.open("rb") as file:
            information = soundfile.info(file)
        assert (information.samplerate, information.channels) == (rate, n_channels)
        assert information.frames == n_frames
        assert information.subtype == (subtype if subtype.startswith("PCM") else "PCM_16")
    assert (result.status, Path(result.output).parts[-2 - ("/" in GOOD[kind])]) == ("ok", "s1")
    [row] = rows(tmp_path / "out")
    assert (row["status"], row["channels"], row["reason"]) == ("ok", str(n_channels), "")
    assert float(row["seconds"]) == pytest.approx(n_frames / rate)


@pytest.mark.parametrize("config", [TINY, override(WHOLE, direction="forward")], ids=type)
@pytest.mark.parametrize("kind", BAD)
def test_bad_files_have_their_line_and_the_rest_go_on(tmp_path, kind, config):
    (tmp_path / "in").mkdir()
    break_file(tmp_path / "in/bad.wav", kind)
    for name in ("a.wav", "z.wav"):
        files.save(tmp_path / "in" / name, noise(), 16000)
    told = []
    run(tiny(config), tmp_path / "in", output=tmp_path / "out", tell=told.append)
    assert [row["status"] for row in rows(tmp_path / "out")] == ["ok", "failed", "ok"]
    assert [row["reason"] for row in rows(tmp_path / "out")] == ["", *told, ""]
    assert told[0].startswith(f"{tmp_path / 'in/bad.wav'}: ")
    assert BAD[kind] in told[0]
    for part in ("s1", "s2"):
        assert sorted(path.name for path in (tmp_path / "out" / part).iterdir()) == [
            "a.wav",
            "z.wav",
        ]


def test_a_model_that_fails_is_the_file_s_reason(tmp_path, model, monkeypatch):
    def fail(*_):
        raise RuntimeError("too\nlong")

    files.save(tmp_path / "in.wav", noise(), 8000)
    monkeypatch.setattr(ConvTasNet, "forward", fail)
    [result] = run(model, tmp_path / "in.wav", output=tmp_path / "out")
    assert result.reason.endswith("the model failed: RuntimeError: too long")
    assert not list((tmp_path / "out").rglob("*.wav*"))


# Going on


def test_what_is_there_is_skipped_and_done_are_those_of_which_all_are_there(tmp_path, model):
    for name in ("a.wav", "b.wav", "sub/c.wav"):
        files.save(tmp_path / "in" / name, noise(), 8000)
    first = run(model, tmp_path / "in", output=tmp_path / "out")
    (tmp_path / "out/s2/b.wav").unlink()
    before = (tmp_path / "out/s1/a.wav").stat().st_mtime_ns
    second = run(model, tmp_path / "in", output=tmp_path / "out")
    assert [result.status for result in first] == ["ok"] * 3
    assert [result.status for result in second] == ["skipped", "ok", "skipped"]
    assert second[0].seconds == first[0].seconds
    assert (tmp_path / "out/s1/a.wav").stat().st_mtime_ns == before
    assert (tmp_path / "out/s2/b.wav").is_file()
    names = [row["output"] for row in rows(tmp_path / "out")]
    assert names == ["s1/a.wav", "s1/b.wav", "s1/sub/c.wav"]


def test_files_of_other_settings_are_neither_skipped_nor_lost(tmp_path, model):
    files.save(tmp_path / "a.wav", noise(), 8000)
    run(model, tmp_path / "a.wav", output=tmp_path / "out")
    before = (tmp_path / "out/s2/a.wav").read_bytes()
    (tmp_path / "out/s1/a.wav").unlink()  # what is left is still of other settings
    with pytest.raises(UserError, match="another model or other settings; use --overwrite"):
        run(model, tmp_path / "a.wav", output=tmp_path / "out", chunk_s=4.0)
    assert (tmp_path / "out/s2/a.wav").read_bytes() == before
    with pytest.raises(UserError, match="another model or other settings; use --overwrite"):
        run(model, tmp_path / "a.wav", output=tmp_path / "out", level="model")
    [result] = run(tiny(WHOLE), tmp_path / "a.wav", output=tmp_path / "out", overwrite=True)
    assert result.status == "ok"
    assert (tmp_path / "out/s3/a.wav").is_file()
    assert (tmp_path / "out/s2/a.wav").read_bytes() != before


@pytest.mark.parametrize("overwrite", [False, True])
def test_no_talker_of_an_earlier_run_is_left_among_the_new(tmp_path, model, overwrite):
    """Of three talkers, the third would pass for an estimate of a model that has two."""
    files.save(tmp_path / "a.wav", noise(), 8000)
    run(tiny(WHOLE), tmp_path / "a.wav", output=tmp_path / "out")
    before = (tmp_path / "out/s1/a.wav").read_bytes()
    with pytest.raises(UserError, match=r"s3/a.wav: is there, and this model has 2 talkers; move"):
        run(model, tmp_path / "a.wav", output=tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "out/s1/a.wav").read_bytes() == before
    (tmp_path / "out/s3").rename(tmp_path / "s3")
    [result] = run(model, tmp_path / "a.wav", output=tmp_path / "out", overwrite=True)
    assert result.status == "ok"


def test_one_run_at_a_time(tmp_path, model):
    pytest.importorskip("fcntl")
    files.save(tmp_path / "a.wav", noise(), 8000)
    with batch.alone(tmp_path / "out"), pytest.raises(UserError, match="another run writes there"):
        run(model, tmp_path / "a.wav", output=tmp_path / "out")


DIES = """
import os, sys
from pathlib import Path
from speechlab.inference import separate
from speechlab.weights.checkpoints import load

def replace(old, new, write=os.replace):
    write(old, new)
    if Path(new).suffix == ".wav":
        os._exit(9)

os.replace = replace
checkpoint, source, output = sys.argv[1:]
separate.separate_all(load(checkpoint), [source], output, progress=False)
"""


def test_killed_between_the_talkers_of_a_mixture(tmp_path, checkpoint):
    """One has its name and the other has not: both are made again."""
    files.save(tmp_path / "in/a.wav", noise(), 8000)
    words = checkpoint, tmp_path / "in", tmp_path / "out"
    killed = subprocess.run(
        [sys.executable, "-c", DIES, *map(str, words)], env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert killed.returncode == 9
    assert len(list((tmp_path / "out").rglob("*.wav"))) == 1
    assert [row["status"] for row in rows(tmp_path / "out")] == ["started"]
    [again] = run(load(checkpoint), tmp_path / "in", output=tmp_path / "out")
    assert again.status == "ok"
    left = sorted(path.name for path in (tmp_path / "out").rglob("*.*"))
    assert left == ["a.wav", "a.wav", "separate.csv"]


def test_killed_and_started_again_it_goes_on_byte_for_byte(tmp_path, checkpoint):
    """kill -9 in the middle of a file: no half of it under its name, then the same bytes."""
    for i in range(3):
        files.save(tmp_path / f"in/{i}.wav", noise(1, 8000 * 40, seed=i), 8000, "FLOAT")
    words = ["separate", "--chunk-s", "4", "--checkpoint", checkpoint]
    words += ["--output", tmp_path / "killed", tmp_path / "in"]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.stalling_writer", *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as killed:
        part = tmp_path / "killed/s2/1.wav.part"
        while killed.poll() is None and not part.exists():
            time.sleep(0.001)
        killed.kill()
    assert part.exists()
    assert not (tmp_path / "killed/s1/1.wav").exists()
    model = load(checkpoint)
    run(model, tmp_path / "in", output=tmp_path / "killed", chunk_s=4.0)
    assert [row["status"] for row in rows(tmp_path / "killed")] == ["skipped", "ok", "ok"]
    run(model, tmp_path / "in", output=tmp_path / "whole", chunk_s=4.0)
    for name in (f"s{s}/{i}.wav" for s in (1, 2) for i in range(3)):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list((tmp_path / "killed").rglob("*.part"))


# The command


def test_the_command(tmp_path, checkpoint, capsys):
    for name in ("a.wav", "b.wav"):
        files.save(tmp_path / "set/mix" / name, noise(), 8000)
    (tmp_path / "set/mix/bad.wav").write_bytes(b"")
    words = ["separate", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "out")]
    assert main.main([*words, str(tmp_path / "set/mix")]) == 1
    printed = capsys.readouterr()
    assert printed.out == "2 ok, 0 skipped, 1 failed\n"
    assert printed.err.count("\n") == 1
    assert printed.err.startswith(f"speechlab: {tmp_path / 'set/mix/bad.wav'}: empty")
    assert main.main([*words, str(tmp_path / "set/mix/[ab].wav")]) == 0
    assert capsys.readouterr().out == "0 ok, 2 skipped, 0 failed\n"
    assert main.main([*words, str(tmp_path / "set/mix"), "--chunk-s", "0"]) == 2
    with pytest.raises(SystemExit):
        main.main(["separate", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert f"default: {separate.CHUNK_S:g}" in printed
    assert f"{{{','.join(separate.LEVELS)}}}" in printed
    assert "default: mixture" in printed
    enhance = ["enhance", *words[1:], str(tmp_path / "set/mix")]
    capsys.readouterr()
    assert main.main(enhance) == 2
    assert "`speechlab separate` takes it" in capsys.readouterr().err
