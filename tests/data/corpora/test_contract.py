"""Laws of every corpus: same bytes however prepared, disjoint splits, faults named in one line."""

import pytest
import soundfile

from speechlab.config import from_dict, override, to_dict
from speechlab.data import manifest
from speechlab.data.corpora import prepare as preparing
from speechlab.data.corpora.catalogue import CORPORA
from speechlab.errors import UserError
from speechlab.storage.atomic import sha256
from tests.data.corpora.conftest import Made
from tests.support.tiny_corpora import config, content, items, lay_out, prepare

OF_FILES = [name for name in CORPORA if name != "synthetic"]
MISSING = {  # what the one message names where no raw files are found
    "voicebank_demand": "clean_testset_wav noisy_trainset_28spk_wav 10.7488/ds/2117 CC.BY",
    "dns2020": "nowhere/clean nowhere/noise no_reverb interspeech2020",
    "libri2mix": "libri2mix_train-clean-100.csv librispeech/dev-clean openslr.org/12",
    "wsj0_2mix": "mix_2_spk_tr.txt activlev LDC93S6A",
    "two_speakers": "no.prepared.corpus",
    "two_speakers_noisy": "no.prepared.corpus",
    "folder": "noisy/.and.clean/ speech/.and.noise/",
}


@pytest.fixture(params=CORPORA)
def made(request, small) -> Made:
    return small(request.param)


@pytest.mark.usefixtures("forks")
def test_interrupted_and_resumed_with_other_processes_the_bytes_are_the_same(
    made, tmp_path, monkeypatch
):
    monkeypatch.setattr(preparing, "SHARD", 3)
    target = tmp_path / "prepared"
    with monkeypatch.context() as interrupted:
        interrupted.setattr(preparing.manifest, "write", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(made.name, target, made.raw, jobs=2)
    with pytest.raises(UserError, match=r"no prepared corpus: it has no corpus\.json"):
        manifest.read(target, "train")
    with pytest.raises(UserError, match=f"sample_rate .* there, {made.other_rate} asked"):
        prepare(made.name, target, made.raw, sample_rate=made.other_rate)
    min((target / "unfinished").glob("train_*.json")).unlink()
    told = prepare(made.name, target, made.raw)
    assert any("recordings are finished already" in line for line in told)
    assert content(target) == content(made.folder)


def test_prepared_again_nothing_happens(made, tmp_path):
    """Whatever the number of processes, and without the raw files; other options are refused."""
    before = {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")}
    (told,) = prepare(made.name, made.folder, tmp_path / "nowhere", jobs=5)
    assert told.startswith(f"{made.folder} is prepared already")
    with pytest.raises(UserError, match=f"sample_rate .* there, {made.other_rate} asked"):
        prepare(made.name, made.folder, made.raw, sample_rate=made.other_rate)
    assert {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")} == before


def test_splits_share_no_speaker_recording_or_file(made):
    splits = items(made.folder)
    assert splits["train"] and splits["dev"] and bool(splits["test"]) == (made.name != "folder")
    for tell in (lambda i: i.speakers, lambda i: i.recordings, lambda i: (i.sha256,)):
        seen = [{value for item in found for value in tell(item)} for found in splits.values()]
        assert sum(map(len, seen)) == len(set.union(*seen))


def test_the_manifest_tells_the_files(made):
    for item in (item for found in items(made.folder).values() for item in found):
        assert item.sha256 == sha256(made.folder / item.path)
        for path in (item.path, *item.sources):
            info = soundfile.info(made.folder / path)
            expected = (item.n_frames, item.sample_rate, 1)
            assert (info.frames, info.samplerate, info.channels) == expected
    assert manifest.data_hash(made.folder) == manifest.about(made.folder)["data_hash"]


def test_corpus_json_tells_options_and_licence_but_no_folder(made):
    about = manifest.about(made.folder)
    corpus = CORPORA[made.name]
    assert (about["corpus"], about["licence"]) == (corpus.name, corpus.licence)
    assert about["options"]["sample_rate"] == corpus.config().sample_rate
    assert about["resampler"]["name"] == "soxr"
    assert not {"jobs", "raw", "source"} & about["options"].keys()
    assert str(made.raw.parent) not in (made.folder / manifest.ABOUT).read_text()


@pytest.mark.parametrize("name", OF_FILES)
def test_a_file_that_is_no_sound_is_named(tmp_path, name):
    for path in lay_out(name, tmp_path / "raw").rglob("*"):
        if path.suffix in (".wav", ".flac"):
            path.write_text(f"{path.name} is no sound")
    with pytest.raises(UserError, match=r"raw/.*\.(wav|flac)") as error:
        prepare(name, tmp_path / "prepared", tmp_path / "raw")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "prepared" / manifest.ABOUT).exists()
    if name not in ("two_speakers", "two_speakers_noisy"):  # their source is a prepared corpus
        assert len((tmp_path / "prepared.faults.txt").read_text().splitlines()) > 5
        assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize("name", OF_FILES)
def test_one_message_says_what_is_missing(tmp_path, name):
    with pytest.raises(UserError, match=".*".join(MISSING[name].split())) as error:
        prepare(name, tmp_path / "prepared", tmp_path / "nowhere")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", CORPORA)
def test_one_process_at_a_time_prepares(tmp_path, monkeypatch, name):
    def waited_for(path, *_):
        raise UserError(f"waits for {path}")

    monkeypatch.setattr(preparing.locks, "waited_for", waited_for)
    with pytest.raises(UserError, match=rf"waits for .*/{name}\.lock"):
        prepare(name, tmp_path / name, tmp_path)


@pytest.mark.parametrize("name", CORPORA)
def test_options_travel_as_json(tmp_path, name):
    small = config(name, tmp_path)
    assert from_dict(type(small), to_dict(small)) == small


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("synthetic", {"n_train": 0}),
        ("synthetic", {"noise_s": 0.5}),
        ("synthetic", {"snr_db": (5, -5)}),
        ("synthetic", {"rt60_s": (0.0, 0.2)}),
        ("synthetic", {"sample_rate": 100}),
        ("two_speakers", {"n_mixtures": 0}),
        ("two_speakers", {"mixture_s": 0}),
        ("two_speakers", {"seed": 2**32}),
        ("two_speakers_noisy", {"n_rooms": 0}),
        ("two_speakers_noisy", {"rt60_s": (0.3, 0.2)}),
        ("folder", {"snr_db": (9.0, 1.0)}),
        ("folder", {"mixture_s": 0.0}),
        ("folder", {"seed": -1}),
        ("folder", {"n_mixtures": -1}),
        ("folder", {"dev_percent": 100}),
        ("libri2mix", {"mixture": "mix_single"}),
        ("libri2mix", {"train": ["train-other-500"]}),
    ],
)
def test_impossible_options_are_refused(name, change):
    with pytest.raises(UserError, match=f"{next(iter(change))} (must|is|has)"):
        override(CORPORA[name].config(), **change)
