"""Mixtures and their sources are found by name; the published test sets are recognised."""

import os
import shutil

import pytest
import soundfile

from speechlab.data import test_sets
from speechlab.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Makes a test set of empty files: names of the noisy and of the clean ones; or by folder."""

    def make(noisy=None, clean=None, **others):
        parts = {"noisy": noisy, "clean": clean} | others
        for part, names in ((part, names) for part, names in parts.items() if names is not None):
            (tmp_path / part).mkdir()
            for name in names:
                (tmp_path / part / name).touch()
        return tmp_path

    return make


TWO = {part: ["b_10.wav", "b_2.wav"] for part in ("mix", "s1", "s2")}


@pytest.mark.parametrize("kind", ["mix", "mix_clean", "mix_both", "mix_both_reverb"])
def test_mixtures_may_have_the_folders_of_libri2mix(folder, kind):
    path = folder(**{kind: TWO["mix"]}, s1=TWO["s1"], s2=TWO["s2"], s3=TWO["s2"])
    mixtures = test_sets.find(path)
    assert [mixture.name for mixture in mixtures] == ["b_2", "b_10"]
    assert mixtures[0].mixture == path / kind / "b_2.wav"
    assert mixtures[0].sources == tuple(path / f"s{n}" / "b_2.wav" for n in (1, 2, 3))
    assert test_sets.recognise(mixtures) is None and test_sets.title(mixtures) == path.name
    (path / "mix_single").mkdir()
    assert test_sets.find(path) == mixtures
    shutil.copytree(path / kind, path / "mix_other")
    assert test_sets.find(path / kind) == mixtures
    with pytest.raises(UserError, match=r"has mix\w*/ and mix_other/ beside s1/; name one"):
        test_sets.find(path)


def test_a_file_that_a_source_lacks_is_named(folder):
    path = folder(**TWO | {"s2": ["b_10.wav"]})
    with pytest.raises(UserError, match=r"s2/ lacks 1 file\(s\) .*: b_2.wav; add them or"):
        test_sets.find(path)


def test_pairs_beside_sources_are_pairs(folder):
    path = folder(**TWO, noisy=TWO["mix"])
    assert len(test_sets.find(path)[0].sources) == 2
    shutil.copytree(path / "s1", path / "clean")
    assert test_sets.find(path)[0].sources == (path / "clean/b_2.wav",)


def test_equal_names_are_pairs_whatever_the_extension(folder):
    path = folder(["p257_001.wav", "p232_010.wav"], ["p232_010.flac", "p257_001.wav"])
    pairs = test_sets.find(path)
    assert [pair.name for pair in pairs] == ["p232_010", "p257_001"]
    assert pairs[0].sources == (path / "clean" / "p232_010.flac",)
    assert pairs[0].mixture == path / "noisy" / "p232_010.wav"


@pytest.mark.parametrize("spelling", ["clnsp1_abc_snr15_tl-22_fileid_{}.wav", "fileid_{}.wav"])
def test_dns_files_are_pairs_by_number(folder, spelling):
    numbers = (10, 9, 300)
    path = folder(
        [spelling.format(number) for number in numbers],
        [f"clean_fileid_{number}.wav" for number in numbers],
    )
    pairs = test_sets.find(path)
    assert [pair.name for pair in pairs] == ["fileid_9", "fileid_10", "fileid_300"]
    numbers = [(pair.mixture.stem, pair.sources[0].stem) for pair in pairs]
    assert all(noisy.split("_")[-1] == clean.split("_")[-1] for noisy, clean in numbers)


def test_other_files_are_left_alone(folder):
    path = folder(["a.wav", "log.txt", ".hidden.wav"], ["a.wav", "readme.md"])
    assert [pair.name for pair in test_sets.find(path)] == ["a"]


@pytest.mark.parametrize(
    ("noisy", "clean", "said"),
    [
        (["a.wav", "b.wav"], ["a.wav"], "b.wav"),
        (["a.wav"], ["a.wav", "c.wav"], "c.wav"),
        (["x_fileid_1.wav"], ["clean_fileid_2.wav"], "clean_fileid_2.wav"),
        (["a.wav", "a.flac"], ["a.wav"], "a.flac and a.wav"),
        ([], [], "no sound files"),
        ([f"{i}.wav" for i in range(20)], ["0.wav"], "19 file"),
    ],
)
def test_what_has_no_partner_is_named(folder, noisy, clean, said):
    with pytest.raises(UserError, match=said):
        test_sets.find(folder(noisy, clean))


def test_rates_are_read_from_the_headers(folder):
    path = folder(["a.wav"], ["a.wav"])
    soundfile.write(path / "clean" / "a.wav", [0.0], 48000)
    assert test_sets.sample_rates([path / "clean" / "a.wav", path / "noisy" / "a.wav"]) == {48000}


@pytest.mark.parametrize("name", ["no", "mix_clean", "."])
def test_a_folder_without_parts_is_refused(tmp_path, name):
    said = "has the folders noisy/ and clean/, or mix/, s1/ and s2/"
    with pytest.raises(UserError, match=said):
        test_sets.find(tmp_path / name)


def test_real_sets_are_recognised(shared):
    pairs = shared / "audio/pairs"
    dns = test_sets.find(pairs / "dns2020_no_reverb")
    assert len(dns) == 150
    assert test_sets.recognise(dns) is test_sets.TEST_SETS["dns2020_no_reverb"]
    voicebank = test_sets.find(pairs / "voicebank_demand_test")
    known = test_sets.recognise(voicebank)
    assert known is test_sets.TEST_SETS["voicebank_demand_test"]
    assert (known.n_files, known.sample_rate) == (824, 16000)
    assert test_sets.recognise(test_sets.find(pairs / "voicebank_demand_train")) is None


def test_a_foreign_name_is_not_recognised():
    known = test_sets.TEST_SETS["dns2020_no_reverb"]
    assert len(known.digests) == known.n_files
    assert known.holds(["fileid_0", "fileid_300"])
    assert not known.holds(["fileid_0", "fileid_1"])  # of the part with reverberation
    assert not known.holds([])
    assert not test_sets.TEST_SETS["voicebank_demand_test"].holds(["p226_001"])


def test_a_set_of_published_names_and_other_contents_is_not_the_published_one(shared, tmp_path):
    """Copies in another format are; one file with one other sample is enough to be another set."""
    official = shared / "audio/pairs/dns2020_no_reverb"
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    for part in ("noisy", "clean"):
        (folder / part).mkdir(parents=True)
        for name in ("fileid_0", "fileid_9"):
            samples, rate = soundfile.read(official / part / f"{name}.flac", dtype="int16")
            soundfile.write(os.fsencode(folder / part / f"{name}.wav"), samples, rate)
    mixtures = test_sets.find(folder)
    assert test_sets.title(mixtures) == "DNS-2020 synthetic no_reverb"
    assert test_sets.impostor(mixtures) == ""
    samples[100] ^= 1
    soundfile.write(os.fsencode(folder / "clean" / "fileid_9.wav"), samples, rate)
    assert test_sets.recognise(mixtures) is None and test_sets.title(mixtures) == folder.name
    assert test_sets.impostor(mixtures).startswith("1 of 2 pairs have names of DNS-2020")
