"""Finetuning on a teacher's output: what it needs, and what stays as it was begun."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

import speechlab
from speechlab.config import replaced
from speechlab.data import manifest
from speechlab.data.corpora.catalogue import CORPORA
from speechlab.data.corpora.folder import FolderConfig
from speechlab.data.mixing import whole_pairs
from speechlab.errors import UserError
from speechlab.evaluation.dev_files import HEARD
from speechlab.evaluation.metrics import si_sdr
from speechlab.models.cleanumamba import CleanUMamba, tiny_config
from speechlab.study import launch
from speechlab.study.experiment import changed, check
from speechlab.study.experiments import EXPERIMENTS
from speechlab.weights import checkpoints
from tests.support import tiny_corpora

TEACHER_ON = {
    "objective": "distillation",
    "examples": "unpaired",
    "pair.segment_s": 0.1,
    "distillation.passed": 1.0,
    "training.n_steps": 2,
}


@pytest.fixture(scope="module")
def unpaired(tmp_path_factory):
    """A prepared folder with noisy recordings that have no clean file; dev has pairs."""
    raw = tmp_path_factory.mktemp("raw")
    for number in range(3):
        tiny_corpora.noise(raw / "train" / "unpaired" / f"{number}.wav")
    tiny_corpora.pairs(raw / "dev", ["anna_001"])
    CORPORA["folder"].prepare(raw / "p", FolderConfig(raw=str(raw), jobs=1), lambda line: None)
    assert [item.kind for item in manifest.read(raw / "p", "train")] == ["unpaired"] * 3
    return raw / "p"


def test_a_student_learns_from_recordings_without_a_clean_signal(toy, trained, unpaired, tmp_path):
    """Finetuned with another level, under states that pass; the teacher is part of the run."""
    start = shutil.copytree(trained, tmp_path / "start")
    taught = changed(replaced(toy, {"name": "taught", "corpora": [str(unpaired)]}), TEACHER_ON)
    run = launch.finetune(start, taught, tmp_path, {"normalize": "running"}, progress=False)
    assert speechlab.load(run.folder).config == dataclasses.replace(toy.model, normalize="running")
    assert run.history["loss"].notna().all() and (run.history["loss"] > 0).all()
    assert launch.finetune(start, taught, tmp_path, {"normalize": "running"}, progress=False).step
    teacher = speechlab.load(start)
    with torch.no_grad():
        next(teacher.parameters()).mul_(2)
    checkpoints.save(start / "best.safetensors", teacher)
    with pytest.raises(UserError, match="begun with another teacher"):
        launch.resume(run.folder, {"n_steps": 3}, progress=False)
    with pytest.raises(UserError, match="teacher_sha256 was"):
        launch.finetune(start, taught, tmp_path, {"normalize": "running"}, progress=False)
    with pytest.raises(UserError, match=r"needs a teacher: set distillation\.teacher, or begin"):
        launch.train(taught, tmp_path / "alone", progress=False)
    with pytest.raises(UserError, match=r"leave model\.d_model out"):
        launch.finetune(start, taught, tmp_path, {"d_model": 8}, progress=False)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"examples": "unpaired"}, "examples=unpaired have no clean signal"),
        (TEACHER_ON | {"distillation.clean": 1.0, "start": "x"}, "have no clean signal"),
        ({"distillation.clean": 1.0}, "'distillation' is not read where objective is supervised"),
    ],
)
def test_distillation_needs_a_teacher_and_unpaired_examples_need_distillation(changes, told):
    with pytest.raises(UserError, match=told):
        check(changed(EXPERIMENTS["cleanumamba-tiny"], changes))


def test_the_dev_files_of_passed_states_are_one_stream(corpus):
    """Scored as in a long recording; the first file is from rest."""
    torch.manual_seed(0)
    model = CleanUMamba(dataclasses.replace(tiny_config(), normalize="running")).eval()
    mixtures = launch.corpora([str(corpus)]).read("dev")["mixture"]
    noisy = [mixture for _, mixture, _ in whole_pairs(mixtures, 16000)]
    with torch.inference_mode():
        whole = model(torch.cat(noisy, -1)[None])[0].split([x.shape[-1] for x in noisy], -1)
    pairs = zip(whole, whole_pairs(mixtures, 16000), strict=True)
    wanted = [
        si_sdr(estimate[0].numpy(), clean[0].numpy(), 16000) for estimate, (*_, clean) in pairs
    ]
    taken = []
    one_by_one = (taken.append(x) or x for x in noisy)
    assert next(HEARD["stream"](model, one_by_one)).shape == noisy[0].shape
    assert len(taken) == 2  # memory does not grow with the number of files
    found = launch.scores(model, mixtures, ("si_sdr",), "stream")["si_sdr"]
    alone = launch.scores(model, mixtures, ("si_sdr",))["si_sdr"]
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    assert found[0] == pytest.approx(alone[0], abs=0.1) and abs(found[1] - alone[1]) > 1e-3
