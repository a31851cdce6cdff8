"""Laws of the metric discriminator: the published scores, alone as in a batch, any size."""

import pytest
import soundfile
import torch
from safetensors.torch import load_file

from speechlab.audio.level import LEVELS
from speechlab.audio.spectrum import FrontEnd
from speechlab.errors import UserError
from speechlab.models.macs import n_params
from speechlab.training.discriminator import MetricDiscriminator, from_published, load_discriminator
from speechlab.weights.checkpoints import fill
from tests.support.signals import array

WEIGHTS = "upstream_checkpoints/semamba/pretrained_discriminator.pth"


def small():
    torch.manual_seed(0)
    return MetricDiscriminator((4, 4, 6, 8))


def mags():
    return 2 * torch.rand(2, 3, 33, 20, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("system", "judged"), [("semamba", "gen_mag"), ("mpsenet", "hat_mag")])
def test_published_scores(shared, system, judged):
    folder = shared / "golden" / system / "losses"
    model = MetricDiscriminator().eval()
    assert n_params(model) == 181650
    fill(model, from_published(load_file(folder / "state.safetensors")), folder)
    names = ("clean_mag", judged, "disc", "disc_logit")
    clean, estimate, score, logit = (array(folder / f"{n}.npy") for n in names)
    with torch.no_grad():
        assert torch.allclose(model(clean, estimate), score[:, 0], rtol=0, atol=1e-5)
        assert torch.allclose(model.logit(clean, estimate), logit[:, 0], rtol=0, atol=1e-5)


def test_a_published_file_by_its_name(shared, monkeypatch):
    monkeypatch.setenv("SPEECHLAB_WEIGHTS", str((shared / WEIGHTS).parent))
    named = load_discriminator("pretrained_discriminator").state_dict()
    for name, tensor in load_discriminator(shared / WEIGHTS).state_dict().items():
        torch.testing.assert_close(named[name], tensor, rtol=0, atol=0)
    with pytest.raises(UserError, match="no such checkpoint"):
        load_discriminator("trained_on_cats")


def test_the_published_weights_know_clean_speech(shared):
    model = load_discriminator(shared / WEIGHTS)
    folder = shared / "audio/pairs/voicebank_demand_train/clean"
    for path in sorted(folder.glob("*.flac"))[:5]:
        clean = torch.from_numpy(soundfile.read(path, dtype="float32")[0])[None, None]
        level = LEVELS["rms"].of(clean, 16000)
        mag = FrontEnd().analyse((clean / level)[:, 0]).mag
        with torch.no_grad():
            assert 4.49 < 1 + 3.5 * model(mag, mag).item() < 4.50


def test_a_score_is_of_its_example_alone():
    model, (clean, estimate) = small().eval(), mags()
    together = model(clean, estimate)
    assert together.shape == (3,) and ((together > 0) & (together < 1)).all()
    for i in range(3):
        alone = model(clean[i : i + 1], estimate[i : i + 1])
        assert torch.allclose(alone, together[i : i + 1], rtol=0, atol=1e-6)
    estimate[1] = torch.nan
    assert model(clean, estimate).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(("n_freqs", "n_frames"), [(201, 1), (1, 1), (201, 15), (16, 16), (33, 40)])
def test_every_size_has_a_score_and_gradients_on_silence(n_freqs, n_frames):
    model = small()
    mag = torch.zeros(2, n_freqs, n_frames, requires_grad=True)
    score = model(mag, mag)
    score.sum().backward()
    assert score.shape == (2,) and mag.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_no_layer_is_steeper_than_one():
    model, (clean, estimate) = small(), mags()
    for _ in range(20):
        model(clean, estimate)
    for layer in model.eval().layers:
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            steepest = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
            assert steepest.item() == pytest.approx(1, abs=1e-2)


def test_a_file_without_a_discriminator_is_named_in_one_line(tmp_path, shared):
    state = torch.load(shared / WEIGHTS, weights_only=True)
    faults = {
        "lacks": dict(list(state.items())[1:]),
        "has an unknown": {**state, "x": state[next(iter(state))]},
    }
    for what, content in faults.items():
        torch.save(content, tmp_path / "d.pth")
        with pytest.raises(UserError, match=rf"d\.pth: does not fit its configuration: {what}"):
            load_discriminator(tmp_path / "d.pth")
    (tmp_path / "d.pth").write_bytes(b"no weights")
    for path in ("d.pth", "none.pth"):
        with pytest.raises(UserError, match=rf"{path}: ") as error:
            load_discriminator(tmp_path / path)
        assert "\n" not in str(error.value)
