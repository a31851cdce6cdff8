"""What the corpora share: held-out groups, conversion, and resumable work."""

import json
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from speechlab.data import digests, manifest
from speechlab.data.corpora import prepare as preparing
from speechlab.data.corpora import survey
from speechlab.data.corpora.corpus import Corpus
from speechlab.data.manifest import Item
from speechlab.errors import UserError
from speechlab.storage.atomic import sha256
from tests.support import tiny_corpora
from tests.support.training_toys import ended, forked

GROUPS = st.sets(st.text(min_size=1, max_size=8), min_size=2, max_size=30)


@dataclass(frozen=True)
class ToyConfig:
    level: float = 1.0
    raw: str = preparing.elsewhere()
    jobs: int = preparing.elsewhere(1)


TOY = Corpus("toy", "Toy", "none", "nowhere", 0.0, "", "ToyConfig")


def job(target, config=None, tell=str):
    return preparing.Preparation(target, TOY, config or ToyConfig(), tell)


@given(GROUPS, st.floats(0, 100))
def test_some_groups_are_held_out_and_never_all(groups, percent):
    held = preparing.held_out(groups, percent)
    assert held and held < groups


@given(GROUPS, st.text(min_size=1, max_size=8))
def test_another_group_moves_no_other_one_out_of_those_held(groups, new):
    """With one exception: where nothing fell under the percentage, the nearest one stood in."""
    before = preparing.held_out(groups, 30)
    after = preparing.held_out(groups | {new}, 30)
    if len(before) > 1:
        assert before <= after


def test_about_the_percentage_is_held_out():
    held = preparing.held_out({f"p{number}" for number in range(2000)}, 10)
    assert 150 < len(held) < 250


def made(task: str, target: Path) -> Item:
    """A toy's file and its line."""
    (target / f"{task}.wav").write_text(task)
    return item(task)


def item(task: str) -> Item:
    return Item(task, "speech", f"{task}.wav", 10, 16000, (), (f"of {task}",), (task,), snr_db=1.5)


def test_lines_come_in_the_order_of_the_tasks_and_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "SHARD", 3)
    run = []

    def make(task: str) -> Item:
        run.append(task)
        return made(task, tmp_path)

    tasks = {"train": [f"t{i}" for i in range(7)], "dev": ["d0"]}
    for told in ([], []):
        found = job(tmp_path, tell=told.append).items(tasks, make)
        assert found == {split: [item(task) for task in names] for split, names in tasks.items()}
    assert told[1:] == ["8 of 8 recordings are finished already"]
    assert run == tasks["train"] + tasks["dev"]
    more = {**tasks, "train": [*tasks["train"][:6], "other"]}
    job(tmp_path).items(more, make)
    assert run[8:] == ["other"]


def _source(task: str, raw: Path) -> list[Path]:
    return [raw / task]


@pytest.mark.parametrize("damaged", ["raw/t4", "corpus/t4.wav"])
def test_a_file_that_changed_since_is_made_again(tmp_path, monkeypatch, damaged):
    """A source or a prepared file, also of the same size and time."""
    monkeypatch.setattr(preparing, "SHARD", 3)
    raw, target, run = tmp_path / "raw", tmp_path / "corpus", []
    target.mkdir()

    def make(task: str) -> Item:
        run.append((raw / task).read_bytes())
        return made(task, target)

    tasks = {"train": [f"t{i}" for i in range(7)]}
    for task in tasks["train"]:
        tiny_corpora.noise(raw / task, format="WAV")
    sources = partial(_source, raw=raw)
    job(target).items(tasks, make, sources)
    path = tmp_path / damaged
    time = path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes()[:-2] + b"xx")
    os.utime(path, ns=(time, time))
    told = []
    job(target, tell=told.append).items(tasks, make, sources)
    assert len(run) == 10
    assert (run.count((raw / "t4").read_bytes()) == 1) == (damaged == "raw/t4")
    assert any("3 recordings are made again" in line for line in told)


def test_each_file_is_read_once_for_its_digest(tmp_path, monkeypatch):
    hashed = []

    def digest(path: Path) -> str:
        hashed.append(path)
        return sha256(path)

    for module in (survey, digests, preparing):
        monkeypatch.setattr(module, "sha256", digest)

    def make(task: str) -> Item:
        preparing.copy(tmp_path / "raw" / task, tmp_path / f"{task}.wav")
        return replace(item(task), sha256=digest(tmp_path / f"{task}.wav"))

    sources = [tiny_corpora.noise(tmp_path / "raw" / task, format="WAV") for task in "ab"]
    preparation = job(tmp_path)
    found = preparation.items({"train": "ab"}, make, partial(_source, raw=tmp_path / "raw"))
    preparation.finish(found, "mend it")
    made = [tmp_path / name for name in ("a.wav", "b.wav", "files.csv")]
    assert sorted(hashed) == sorted([*sources, *made])


def test_a_list_of_faults_replaces_no_other_file(tmp_path):
    path, of = tmp_path / "corpus.faults.txt", job(tmp_path / "corpus")
    path.write_text("mine")
    with pytest.raises(UserError, match=r"2 of 9 files .*\.txt is no list of them, and stays"):
        of.refuse(["a", "b"], 9)
    of.refuse([], 9)
    assert path.read_text() == "mine"
    path.unlink()
    for faults in (["a", "b"], ["c", "d"]):
        with pytest.raises(UserError, match=r"faults\.txt lists all"):
            of.refuse(faults, 9)
        assert path.read_text().splitlines()[1:] == faults
    of.refuse([], 9)
    assert not path.exists()


def test_of_two_processes_one_prepares_and_the_other_waits(tmp_path):
    """The second finds it prepared; what is there needs no lock, and failing leaves nothing."""
    target, told = tmp_path / "corpus", []
    (reader, writer), (released, release) = os.pipe(), os.pipe()

    @preparing.alone(TOY)
    def prepare(job):
        os.write(writer, b"!")
        os.read(released, 1)
        job.finish(job.items({"train": ["a"]}, partial(made, target=target)), "mend it")

    ready = f"{target} is prepared already; for other files name another folder"
    child = forked(lambda: prepare(target, ToyConfig(), print))
    assert os.read(reader, 1) == b"!"

    def tell(line):  # that it waits, then that it is ready
        told.append(line)
        os.write(release, b"!")

    prepare(target, ToyConfig(), tell)
    assert ended(child) == 0
    assert told == [f"{target}: another process prepares it; waiting for that", ready]
    (tmp_path / "corpus.lock").mkdir()  # a lock file could not be made
    prepare(target, ToyConfig(), told.append)
    assert told[2:] == [ready]


def test_a_preparation_that_fails_leaves_no_lock(tmp_path):
    @preparing.alone(TOY)
    def prepare(job):
        raise UserError("nothing to prepare")

    with pytest.raises(UserError, match="nothing to prepare"):
        prepare(tmp_path / "corpus", ToyConfig(), print)
    assert not list(tmp_path.iterdir())


def test_a_corpus_tells_its_options_and_not_where_it_was_made(tmp_path):
    config = ToyConfig(raw=str(tmp_path / "private"))
    assert not job(tmp_path, config).is_ready()
    job(tmp_path, config).finish({"train": [made("a", tmp_path)]}, "mend it", n_found=3)
    about = json.loads((tmp_path / "corpus.json").read_text())
    assert about["options"] == {"level": 1.0}
    assert "private" not in (tmp_path / "corpus.json").read_text()
    assert about["n_found"] == 3 and about["licence"] == "none"
    assert job(tmp_path, replace(config, raw="elsewhere", jobs=5)).is_ready()
    with pytest.raises(UserError, match=r"other options \(level 1\.0 there, 2\.0 asked\)"):
        job(tmp_path, ToyConfig(level=2.0)).is_ready()
    with pytest.raises(UserError, match="jobs is -1"):
        job(tmp_path, ToyConfig(jobs=-1)).items({}, item)
    with pytest.raises(UserError, match="corpus toy there, other asked"):
        replace(job(tmp_path, config), corpus=replace(TOY, name="other")).is_ready()
    (tmp_path / "dev.csv").write_text((tmp_path / "train.csv").read_text())
    with pytest.raises(UserError, match="changed by hand"):
        job(tmp_path, config).is_ready()


def test_overlapping_splits_are_one_message_with_the_fix(tmp_path):
    splits = {"train": [item("a")], "dev": [replace(item("b"), recordings=("a",))]}
    with pytest.raises(UserError, match=r"recording a is in both train and dev; mend it"):
        job(tmp_path).finish(splits, "mend it")
    assert not (tmp_path / manifest.ABOUT).exists()


@pytest.mark.parametrize("name", ["train.csv", "train/noisy/a.wav", "notes"])
def test_a_folder_with_other_files_is_left_alone(tmp_path, name):
    """As that of the recordings themselves; what a download made is no obstacle."""
    (tmp_path / "raw").mkdir()
    (tmp_path / ".hidden").touch()
    assert not job(tmp_path).is_ready()
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=rf"holds other files \({name.partition('/')[0]}\)"):
        job(tmp_path).is_ready()


def test_conversion_averages_channels_and_resamples(tmp_path):
    source = tiny_corpora.noise(tmp_path / "a.wav", seconds=0.3, sample_rate=44100, n_channels=2)
    assert preparing.convert(source, tmp_path / "b.wav", 16000) == 4800
    info = soundfile.info(tmp_path / "b.wav")
    assert (info.channels, info.samplerate, info.subtype) == (1, 16000, "PCM_16")


def test_sounds_are_found_at_any_depth_and_once(tmp_path):
    for name in ("b.wav", "a/b.flac", "a/.hidden.wav", "__MACOSX/b.wav", ".git/b.wav"):
        tiny_corpora.noise(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no sound")
    assert list(preparing.sounds(tmp_path)) == ["a/b", "b"]
    tiny_corpora.noise(tmp_path / "b.flac")
    with pytest.raises(UserError, match=r"b\.flac and .*b\.wav have one name"):
        preparing.sounds(tmp_path)
