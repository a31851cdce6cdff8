"""`separate`: samples, one order in a file, refusals. Files: see test_contract.py."""

import pytest
import soundfile
import torch

from speechlab.audio import files
from speechlab.cli import main
from speechlab.config import override
from speechlab.errors import UserError
from speechlab.inference import separate
from speechlab.inference.enhance import enhance_all, enhance_blocks, enhance_file, load_causal
from speechlab.inference.separate import separate_all, separate_blocks, separate_file
from speechlab.models.sepmamba import SepMamba
from speechlab.weights.checkpoints import save
from tests.support.commands import TINY, WHOLE, enhancer, separator
from tests.support.separation_toys import RATE, Splitter, flips, talk
from tests.support.small_models import SMALL
from tests.support.sound_files import noise


@pytest.fixture(scope="module")
def model():
    return separator()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors", separator())


def whole(model, waveform):
    """The reference: (C, T) -> (C, S, T) at once, each channel on its own."""
    with torch.inference_mode():
        return torch.cat([model(channel[None, None]) for channel in waveform])


def run(model, *inputs, output, **settings):
    return separate_all(model, inputs, output, progress=False, **settings)


# The samples


@pytest.mark.parametrize("config", [TINY, WHOLE], ids=["conv_tasnet", "sepmamba"])
@pytest.mark.parametrize("sizes", [[1] * 50, [5000], [3, 1999, 0, 2998], [7]])
def test_what_fits_into_a_chunk_is_the_model_itself(config, sizes):
    model, mixture = separator(config), noise(1, sum(sizes))
    estimate = torch.cat(list(separate_blocks(model, iter(mixture.split(sizes, -1)))), -1)
    assert torch.equal(estimate, whole(model, mixture))


def test_chunks_agree_with_the_whole():
    """Of a model that sees both directions, and no more of the whole than its states remember."""
    model, mixture = separator(WHOLE), noise(2, 50000)
    estimate = torch.cat(list(separate_blocks(model, mixture.split(7001, -1), chunk_s=2.0)), -1)
    wanted = whole(model, mixture)
    assert estimate.shape == wanted.shape
    assert (estimate - wanted).square().mean() < 1e-6 * wanted.square().mean()  # -60 dB


@pytest.mark.parametrize("sizes", [[1] * 300, [20001], [3, 8000, 0, 9001], [7]])
def test_a_model_that_streams_has_no_seams(sizes):
    model, mixture = separator(override(WHOLE, direction="forward")), noise(1, sum(sizes))
    blocks = separate_blocks(model, mixture.split(sizes, -1), chunk_s=1.0)
    estimate = torch.cat(list(blocks), -1)
    assert estimate.shape == (1, 3, sum(sizes))
    assert (estimate - whole(model, mixture)).abs().max() < 1e-5


def test_channels_of_a_stream_have_one_order():
    """A model that swaps the channels' speakers, once and for all."""
    streaming = separator(override(WHOLE, direction="forward"))
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


def test_ten_minutes_without_a_flip(tmp_path):
    """Speakers who take turns, talk at once and pause; from a file to files."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(250, 2, generator=generator)
    schedule = [(0.5 + 8 * float(a) ** 2, int(4 * b)) for a, b in drawn]
    schedule[20:20] = [(50, 0)]  # longer than a chunk
    sources = talk(schedule)[:, : 600 * RATE]
    soundfile.write(tmp_path / "in.wav", sources.sum(0).numpy(), RATE, "FLOAT")
    model, targets = Splitter(hiss=0.003), [tmp_path / "1.wav", tmp_path / "2.wav"]
    result = separate_file(model, tmp_path / "in.wav", targets, chunk_s=10.0)
    estimates = torch.cat([files.load(target)[0] for target in targets])
    assert result.seconds == 600
    assert min(map(model.orders.count, [(0, 1), (1, 0)])) > 20
    assert flips(estimates, sources) == 0


# What is refused


def test_each_command_names_the_other(tmp_path, checkpoint, model):
    with pytest.raises(UserError, match=r"CleanUMamba .*`speechlab enhance`"):
        run(enhancer(), tmp_path, output=tmp_path / "out")
    with pytest.raises(UserError, match="`speechlab enhance`"):
        separate_blocks(enhancer(), [noise()])
    for refused in (
        lambda: enhance_all(model, [tmp_path], tmp_path / "out"),
        lambda: enhance_file(model, tmp_path / "a.wav", tmp_path / "b.wav"),
        lambda: enhance_blocks(model, [noise()]),
        lambda: load_causal(checkpoint),
    ):
        with pytest.raises(UserError, match=r"ConvTasNet .*`speechlab separate`"):
            refused()


@pytest.mark.parametrize("overwrite", [False, True])
def test_no_speaker_of_an_earlier_run_is_left_among_the_new(tmp_path, model, overwrite):
    """Of three speakers, the third would pass for an estimate of a model that has two."""
    files.save(tmp_path / "a.wav", noise(), 8000)
    run(separator(WHOLE), tmp_path / "a.wav", output=tmp_path / "out")
    before = (tmp_path / "out/s1/a.wav").read_bytes()
    with pytest.raises(UserError, match=r"s3/a.wav: exists, and this model has 2 speakers; move"):
        run(model, tmp_path / "a.wav", output=tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "out/s1/a.wav").read_bytes() == before
    (tmp_path / "out/s3").rename(tmp_path / "s3")
    [result] = run(model, tmp_path / "a.wav", output=tmp_path / "out", overwrite=True)
    assert result.status == "ok"


class Wrong(SepMamba):
    """Gives other shapes than it tells."""

    cut, n_sources = 0, 2  # samples that are missing

    def network(self, x, state, last):
        x, state = super().network(x, state, last)
        return x[..., self.cut if last else 0 :], state


@pytest.mark.parametrize("level", separate.LEVELS)
@pytest.mark.parametrize("direction", ["both", "forward"])
@pytest.mark.parametrize(("cut", "n_sources"), [(1, 3), (0, 2)])
def test_a_model_of_wrong_shapes_is_one_line(tmp_path, direction, level, cut, n_sources):
    """Neither a sample nor a speaker too few, and in no file."""
    model = Wrong(override(WHOLE, direction=direction)).eval()
    model.cut, model.n_sources = cut, n_sources
    files.save(tmp_path / "in.wav", noise(1, 20000), 8000)
    told = r"in\.wav: Wrong gave \(1, 3, \d+\) instead of \(1, [23], \d+\)"
    targets = [tmp_path / f"s{i}.wav" for i in range(n_sources)]
    for chunk_s in (1.0, 4.0):
        with pytest.raises(UserError, match=told):
            separate_file(model, tmp_path / "in.wav", targets, chunk_s=chunk_s, level=level)
    assert [path.name for path in tmp_path.iterdir()] == ["in.wav"]
    with pytest.raises(UserError, match=r"^the mixture: Wrong gave"):
        list(separate_blocks(model, [noise()]))


def test_a_file_of_many_channels_is_refused_by_its_header(tmp_path, model):
    files.save(tmp_path / "in.wav", torch.zeros(17, 100), RATE)
    with pytest.raises(UserError, match="17 channels; at most 16"):
        separate_file(model, tmp_path / "in.wav", [tmp_path / "1.wav", tmp_path / "2.wav"])
    assert [path.name for path in tmp_path.iterdir()] == ["in.wav"]


@pytest.mark.parametrize("level", ["mixture", "model"])
@pytest.mark.parametrize("config", [TINY, WHOLE], ids=["conv_tasnet", "sepmamba"])
def test_an_offset_changes_no_estimate(tmp_path, config, level):
    """5 % of full scale in the second channel: the estimates are those without it."""
    mixture, model = noise(2, 16000), separator(config)
    mixture -= mixture.mean(-1, keepdim=True)
    estimates = []
    for offset in (0.0, 0.05):
        source = tmp_path / f"{offset}.wav"
        files.save(source, mixture + torch.tensor([[0.0], [offset]]), 8000, "FLOAT")
        targets = [tmp_path / f"{offset}_{i}.wav" for i in range(model.n_sources)]
        separate_file(model, source, targets, level=level)
        estimates.append(torch.stack([files.load(target)[0] for target in targets]))
    torch.testing.assert_close(estimates[1], estimates[0], atol=1e-4, rtol=0)


def test_a_file_is_not_written_over_itself(tmp_path):
    model = separator()
    source, other = tmp_path / "x.wav", tmp_path / "y.wav"
    files.save(source, noise(), 8000)
    (tmp_path / "link.wav").hardlink_to(source)
    before = source.read_bytes()
    for target in (source, tmp_path / "." / "x.wav", tmp_path / "link.wav"):
        with pytest.raises(UserError, match="wav: is the input, and would be overwritten"):
            separate_file(model, source, [other, target])
    for targets in ([other], [other, other]):
        with pytest.raises(UserError, match="2 speakers need as many different targets"):
            separate_file(model, source, targets)
    assert source.read_bytes() == before and not other.exists()


# The command


def test_the_command(tmp_path, checkpoint, capsys):
    for name in ("a.wav", "b.wav"):
        files.save(tmp_path / "set/mix" / name, noise(), 8000)
    (tmp_path / "set/mix/bad.wav").write_bytes(b"")
    words = ["separate", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "out")]
    assert main.main([*words, str(tmp_path / "set/mix")]) == 1
    printed = capsys.readouterr()
    assert printed.out == "2 ok, 0 skipped, 1 failed\n"
    [error, *report] = printed.err.splitlines()
    assert error.startswith(f"speechlab: {tmp_path / 'set/mix/bad.wav'}: empty")
    assert len(report) == 3 and all(line.startswith("separate: ") for line in report)
    assert main.main([*words, str(tmp_path / "set/mix/[ab].wav")]) == 0
    assert capsys.readouterr().out == "0 ok, 2 skipped, 0 failed\n"
    assert main.main([*words, str(tmp_path / "set/mix"), "--chunk-s", "0"]) == 2
    with pytest.raises(SystemExit):
        main.main(["separate", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert f"Default: {separate.CHUNK_S:g}" in printed
    assert "Default: mixture" in printed and "Default: robust" in printed
    for levels in (separate.LEVELS, separate.INPUT_LEVELS):
        assert f"{{{','.join(levels)}}}" in printed


def test_an_estimate_of_a_causal_separator_that_is_not_finite_names_its_file(tmp_path):
    torch.manual_seed(0)
    model = SepMamba(SMALL["sepmamba"])
    next(model.parameters()).data.fill_(torch.nan)
    files.save(tmp_path / "in.wav", noise(), 16000)
    [result] = separate_all(model, [tmp_path / "in.wav"], tmp_path / "out", progress=False)
    assert result.reason.startswith(f"{tmp_path / 'in.wav'}: the model gave NaN")
