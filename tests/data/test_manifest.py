"""Laws of manifests: what is written is read, splits share nothing, the test split stays shut."""

import dataclasses
import json

import pytest

from speechlab.data import manifest
from speechlab.data.manifest import Item
from speechlab.errors import UserError


def item(name: str, speaker: str = "", **words: object) -> Item:
    speakers = (speaker,) if speaker else ()
    return Item(name, "speech", f"{name}.flac", 16000, 16000, speakers=speakers, **words)


SPLITS = {
    "train": [item("a", "anna", text='She said, "no";\nthen left', sha256="0" * 64)],
    "dev": [
        Item("m", "mixture", "dev/noisy/m.flac", 5, 8000, ("c1", "c2"), ("b", "c"), snr_db=-2.5)
    ],
    "test": [item("t", "tom", gain_db=-3.0)],
}


def test_what_is_written_is_read(tmp_path):
    manifest.write(tmp_path, SPLITS, {"name": "toy"})
    assert manifest.read(tmp_path, "train") == SPLITS["train"]
    assert manifest.read(tmp_path, "dev") == SPLITS["dev"]
    assert manifest.about(tmp_path)["name"] == "toy"
    assert manifest.data_hash(tmp_path) == manifest.about(tmp_path)["data_hash"]
    assert SPLITS["dev"][0].seconds == 5 / 8000


@pytest.mark.parametrize("split", ["test", "tr", ""])
def test_training_reads_no_other_split(tmp_path, split):
    manifest.write(tmp_path, SPLITS, {})
    with pytest.raises(UserError, match="training reads 'train' and 'dev'"):
        manifest.read(tmp_path, split)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (item("x", "anna"), "speaker anna"),
        (item("x", recordings=("book 1",)), "recording book 1"),
        (dataclasses.replace(item("x"), path="a.flac"), "file a.flac"),
        (dataclasses.replace(item("x"), sources=("a.flac",)), "file a.flac"),
        (item("a"), "two recordings are named a"),
    ],
)
def test_splits_share_nothing(tmp_path, other, what):
    here = dataclasses.replace(item("a", "anna"), recordings=("book 1",))
    with pytest.raises(ValueError, match=what):
        manifest.write(tmp_path, {"train": [here], "dev": [other]}, {})
    assert not (tmp_path / manifest.ABOUT).exists()


def test_a_manifest_changed_by_hand_is_told_and_a_damaged_line_is_named(tmp_path):
    manifest.write(tmp_path, SPLITS, {})
    path = tmp_path / "train.csv"
    path.write_text(path.read_text().replace("anna", "bert"))
    with pytest.raises(UserError, match="changed by hand"):
        manifest.data_hash(tmp_path)
    path.write_text(path.read_text().replace("16000", "many"))
    with pytest.raises(UserError, match=r"train\.csv, line 2"):
        manifest.read(tmp_path, "train")


def test_corpus_json_that_is_none_is_told(tmp_path):
    (tmp_path / manifest.ABOUT).write_text("{")
    with pytest.raises(UserError, match="prepare the corpus again"):
        manifest.about(tmp_path)
    (tmp_path / manifest.ABOUT).write_text(json.dumps({}))
    with pytest.raises(UserError, match=r"train\.csv cannot be read"):
        manifest.read(tmp_path, "train")
