"""The listening demo: what the button does, and that the page is served here and only here."""

import importlib
import os
import re
import socket
import sys
import urllib.request

import numpy as np
import pytest
import soundfile
import torch

from speechlab.config import override
from speechlab.models import SYSTEMS
from speechlab.models.cleanumamba import CleanUMamba
from speechlab.weights.checkpoints import save
from tests.support.small_models import SMALL
from tests.support.training_toys import ended, forked

RATE = 16000  # Hz


@pytest.fixture(scope="module")
def app():
    """Imported on use: gradio takes seconds, and every process of the tests reads this file."""
    return importlib.import_module("gradio_app.app")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model of the right shape whose output means nothing."""
    torch.manual_seed(0)
    model = CleanUMamba(override(SMALL["cleanumamba"], normalize="utterance"))
    return str(save(tmp_path_factory.mktemp("demo") / "tiny.safetensors", model))


@pytest.fixture
def record(tmp_path):
    def write(samples, sample_rate=RATE):
        path = tmp_path / "recording.wav"
        soundfile.write(path, samples, sample_rate, subtype="FLOAT")
        return str(path)

    return write


@pytest.mark.parametrize("sample_rate", [8000, 16000, 44100, 48000])
@pytest.mark.parametrize("n_channels", [1, 2])
def test_output_is_as_long_as_the_input(app, tiny, record, sample_rate, n_channels):
    noisy = 0.1 * np.random.default_rng(0).standard_normal((sample_rate // 3, n_channels))
    (rate, samples), figure, facts = app.compare(tiny, record(noisy, sample_rate))
    assert (rate, samples.shape, samples.dtype) == (sample_rate, noisy.shape, np.int16)
    assert "0.3 s of sound" in facts
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes[:2]]
    assert titles == ["noisy", "enhanced"]


def test_channels_do_not_mix(app, tiny):
    """Each channel gives what it gives alone, and at the model's rate nothing is resampled."""
    model = app.load(tiny)
    noisy = 0.1 * torch.randn(2, 4000)
    noisy -= noisy.mean(-1, keepdim=True)  # an offset is handled apart
    both = app.enhance(model, noisy, RATE)
    with torch.inference_mode():
        alone = torch.cat([model(channel[None, None])[0] for channel in noisy])
    torch.testing.assert_close(both, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("n_samples", [1, 100, 16000])
def test_silence_and_single_samples(app, tiny, record, n_samples):
    (_, samples), _, _ = app.compare(tiny, record(np.zeros((n_samples, 1))))
    assert samples.shape == (n_samples, 1) and np.isfinite(samples).all()


def test_mistakes_are_told(app, tiny, record, tmp_path):
    """Every mistake is one bold line in the page, and nothing to hear."""
    recording = record(np.zeros((100, 1)))
    empty = tmp_path / "empty.wav"
    soundfile.write(empty, np.zeros((0, 1)), RATE)
    wide = tmp_path / "wide.wav"
    soundfile.write(wide, np.zeros((100, 9)), RATE)
    for checkpoint, sound, told in (
        (None, recording, "choose a checkpoint"),
        (tiny, None, "add or record a sound"),
        (tiny, str(empty), "no samples"),
        (tiny, record(np.zeros((121 * 1000, 1)), 1000), "cut it to 120 s"),
        ("nowhere.safetensors", recording, "no such checkpoint"),
        (tiny, str(wide), "has 9 channels: take at most 8"),
    ):
        estimate, figure, line = app.compare(checkpoint, sound)
        assert estimate is None and figure is None and told in line


@pytest.mark.parametrize(
    ("change", "told"),
    [("separates", "use `speechlab separate`"), ("nan", "NaN or infinite"), ("typed", "the list")],
)
def test_models_that_are_refused(app, tmp_path, record, change, told):
    """Separators, models of NaN, and on a public address all that are not listed."""
    model = CleanUMamba(override(SMALL["cleanumamba"], normalize="utterance"))
    if change == "separates":
        model = SYSTEMS["sepmamba"][1](SMALL["sepmamba"])
    elif change == "nan":
        with torch.no_grad():
            [*model.parameters()][-1].fill_(torch.nan)
    path = str(save(tmp_path / "x.safetensors", model))
    allowed = () if change == "typed" else None
    noisy = record(0.1 * np.ones((4000, 1)))
    estimate, figure, line = app.compare(path, noisy, allowed=allowed)
    assert estimate is None and figure is None and told in line


@pytest.mark.parametrize(
    ("host", "own"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("a.org", False)],
)
def test_paths_are_typed_on_this_machine_only(app, host, own):
    assert app.is_loopback(host) is own


def test_an_unknown_device_is_one_line(app, capsys):
    assert app.main(["--device", "cuda:77"]) == 2
    assert capsys.readouterr().err.startswith("speechlab: no device 'cuda:77'")


def served(app, words, visit, tmp_path):
    """The exit code of the command and its stderr, in a fork: a server leaves sockets behind.

    visit: takes what is printed, in the place of the wait for Ctrl-C.
    """

    def work():
        printed = tmp_path / "stdout"
        app.gr.Blocks.block_thread = lambda page: visit(printed.read_text())
        with printed.open("w") as sys.stdout, (tmp_path / "stderr").open("w") as sys.stderr:
            os.environ["GRADIO_TEMP_DIR"] = str(tmp_path)
            sys.stdout.reconfigure(line_buffering=True)
            code = app.main(words)
        os._exit(code)

    return ended(forked(work)), (tmp_path / "stderr").read_text()


def test_page_is_served_on_this_machine(app, tiny, tmp_path):
    """On a port it finds; the page asks no other host for anything."""

    def visit(printed):
        address = re.search(r"listening on (http://127\.0\.0\.1:\d+/)", printed)
        with urllib.request.urlopen(address[1], timeout=600) as response:
            (tmp_path / "page.html").write_bytes(response.read())

    assert served(app, ["--checkpoint", tiny], visit, tmp_path)[0] == 0
    page = (tmp_path / "page.html").read_text()
    assert "speechlab" in page
    assert not re.findall(r"""<(?:script|img|iframe|link)[^>]*(?:src|href)=["']https?:""", page)


def test_a_busy_port_is_one_line(app, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        told = f"speechlab: port {port} cannot be used on 127.0.0.1; choose another --port\n"
        assert served(app, ["--port", port], None, tmp_path) == (2, told)


def test_a_checkpoint_that_was_written_anew_is_loaded_anew(app, tiny, tmp_path):
    path = tmp_path / "model.safetensors"
    save(path, app.load(tiny))
    first = app.load(str(path))
    assert app.load(str(path)) is first
    with torch.no_grad():
        next(first.parameters()).add_(1)
    save(path, first)
    os.utime(path, ns=(1, 1))  # whatever the resolution of the clock
    second = app.load(str(path))
    assert second is not first
    torch.testing.assert_close(next(second.parameters()), next(first.parameters()))


def test_wrong_checkpoint_ends_with_one_line(app, capsys):
    assert app.main(["--checkpoint", "nowhere.pkl"]) == 2
    assert capsys.readouterr().err.startswith("speechlab: nowhere.pkl: no such checkpoint")
