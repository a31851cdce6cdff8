"""Pairing of noisy and clean files, and recognition of the published test sets."""

import pytest
import soundfile

from speechlab.data import test_sets
from speechlab.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Makes a test set of empty files: names of the noisy and of the clean ones."""

    def make(noisy, clean):
        for part, names in (("noisy", noisy), ("clean", clean)):
            (tmp_path / part).mkdir()
            for name in names:
                (tmp_path / part / name).touch()
        return tmp_path

    return make


def test_equal_names_are_pairs_whatever_the_extension(folder):
    path = folder(["p257_001.wav", "p232_010.wav"], ["p232_010.flac", "p257_001.wav"])
    pairs = test_sets.find_pairs(path)
    assert [pair.name for pair in pairs] == ["p232_010", "p257_001"]
    assert pairs[0].clean == path / "clean" / "p232_010.flac"
    assert pairs[0].noisy == path / "noisy" / "p232_010.wav"


@pytest.mark.parametrize("spelling", ["clnsp1_abc_snr15_tl-22_fileid_{}.wav", "fileid_{}.wav"])
def test_dns_files_are_pairs_by_number(folder, spelling):
    numbers = (10, 9, 300)
    path = folder(
        [spelling.format(number) for number in numbers],
        [f"clean_fileid_{number}.wav" for number in numbers],
    )
    pairs = test_sets.find_pairs(path)
    assert [pair.name for pair in pairs] == ["fileid_9", "fileid_10", "fileid_300"]
    assert all(pair.noisy.stem.split("_")[-1] == pair.clean.stem.split("_")[-1] for pair in pairs)


def test_other_files_are_left_alone(folder):
    path = folder(["a.wav", "log.txt", ".hidden.wav"], ["a.wav", "readme.md"])
    assert [pair.name for pair in test_sets.find_pairs(path)] == ["a"]


@pytest.mark.parametrize(
    ("noisy", "clean", "said"),
    [
        (["a.wav", "b.wav"], ["a.wav"], "b.wav"),
        (["a.wav"], ["a.wav", "c.wav"], "c.wav"),
        (["x_fileid_1.wav"], ["clean_fileid_2.wav"], "x_fileid_1.wav"),
        (["a.wav", "a.flac"], ["a.wav"], "a.flac and a.wav"),
        ([], [], "no sound files"),
        ([f"{i}.wav" for i in range(20)], ["0.wav"], "19 file"),
    ],
)
def test_what_has_no_partner_is_named(folder, noisy, clean, said):
    with pytest.raises(UserError, match=said):
        test_sets.find_pairs(folder(noisy, clean))


def test_rates_are_read_from_the_headers(folder):
    path = folder(["a.wav"], ["a.wav"])
    soundfile.write(path / "clean" / "a.wav", [0.0], 48000)
    assert test_sets.sample_rates([path / "clean" / "a.wav", path / "noisy" / "a.wav"]) == {48000}


def test_a_folder_without_parts_is_refused(tmp_path):
    with pytest.raises(UserError, match="noisy"):
        test_sets.find_pairs(tmp_path)


def test_real_sets_are_recognised(shared):
    pairs = shared / "audio/pairs"
    dns = test_sets.find_pairs(pairs / "dns2020_no_reverb")
    assert len(dns) == 150
    assert test_sets.recognise(dns) is test_sets.TEST_SETS["dns2020_no_reverb"]
    voicebank = test_sets.find_pairs(pairs / "voicebank_demand_test")
    known = test_sets.recognise(voicebank)
    assert known is test_sets.TEST_SETS["voicebank_demand_test"]
    assert (known.n_files, known.sample_rate) == (824, 16000)
    assert test_sets.recognise(test_sets.find_pairs(pairs / "voicebank_demand_train")) is None


def test_a_foreign_name_is_not_recognised():
    known = test_sets.TEST_SETS["dns2020_no_reverb"]
    assert len(known.names) == known.n_files
    assert known.holds(["fileid_0", "fileid_300"])
    assert not known.holds(["fileid_0", "fileid_1"])  # of the part with reverberation
    assert not known.holds([])
    assert not test_sets.TEST_SETS["voicebank_demand_test"].holds(["p226_001"])
