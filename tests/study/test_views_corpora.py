"""What notebook 01 shows of corpora: their contents, and the corpora of two speakers."""

import json

import pytest

from speechlab.data import manifest
from speechlab.data.corpora import two_speakers
from speechlab.study import views_corpora
from tests.support import toy_corpus


@pytest.fixture
def corpus(tmp_path):
    return toy_corpus.prepared(tmp_path / "own")


def test_a_table_has_every_kind_of_every_split(corpus):
    table = views_corpora.contents([corpus])
    assert table.index.tolist() == [
        ("own", split, kind)
        for split in ("train", "dev")
        for kind in ("speech", "noise", "mixture")
    ]
    assert table.loc[("own", "train", "speech"), ["files", "speakers"]].tolist() == [2, 2]
    assert table.loc[("own", "dev", "mixture"), "shortest_s"] == 0.5


def test_another_corpus_gets_no_corpora_of_two_speakers(corpus):
    assert views_corpora.two_speaker_corpora(corpus, 1, tiny=False) == []
    assert views_corpora.first_mixtures([]) == {}
    assert [path.name for path in corpus.parent.iterdir()] == ["own"]


def test_a_prepared_corpus_is_left_as_it_is(corpus, tmp_path, monkeypatch):
    about = manifest.about(corpus) | {"corpus": "synthetic"}
    (corpus / manifest.ABOUT).write_text(json.dumps(about))
    made = []
    for name in views_corpora.TITLES:
        (tmp_path / name).mkdir()
    (tmp_path / "two_speakers" / manifest.ABOUT).write_text("{}")
    monkeypatch.setattr(two_speakers, "prepare", lambda target, *_: made.append(target.name))
    folders = views_corpora.two_speaker_corpora(corpus, 1, tiny=False)
    assert [folder.name for folder in folders] == list(views_corpora.TITLES)
    assert made == ["two_speakers_noisy"]


def test_pairs_of_dev_are_measured_where_none_were_noted(corpus):
    """Or read from pairs.csv. The toy's noisy files are other noise than its clean ones."""
    table = views_corpora.pairs(corpus)
    n_pairs = sum(item.kind == "mixture" for item in manifest.read(corpus, "dev"))
    assert len(table) == n_pairs > 0
    assert table["remark"].str.contains("do not belong together").all()
    (corpus / "pairs.csv").write_text("name,lag_ms,snr_db,correlation,remark\na,5,nan,0.9,late\n")
    [row] = views_corpora.pairs(corpus).to_dict("records")
    assert row["remark"] == "late" and row["lag_ms"] == 5
