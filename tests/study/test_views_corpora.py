"""What notebook 01 shows of corpora: what lies there, and talkers in twos where it makes them."""

import json

import pytest

from speechlab.data import manifest
from speechlab.data.corpora import synthetic, two_speakers
from speechlab.study import views_corpora as showing
from tests.support import toy_corpus


@pytest.fixture
def corpus(tmp_path):
    return toy_corpus.prepared(tmp_path / "own")


def test_a_table_has_every_kind_of_every_split(corpus):
    table = showing.contents([corpus])
    assert table.index.tolist() == [
        ("own", split, kind)
        for split in ("train", "dev")
        for kind in ("speech", "noise", "mixture")
    ]
    assert table.loc[("own", "train", "speech"), ["files", "speakers"]].tolist() == [2, 2]
    assert table.loc[("own", "dev", "mixture"), "shortest_s"] == 0.5


def test_talkers_of_another_corpus_stay_alone(corpus):
    assert showing.in_twos(corpus, 1, tiny=False) == []
    assert showing.talkers_at_once([]) == {}
    assert [path.name for path in corpus.parent.iterdir()] == ["own"]


def test_what_is_made_already_is_taken_as_it_is(corpus, tmp_path, monkeypatch):
    about = manifest.about(corpus) | {"corpus": synthetic.CORPUS.name}
    (corpus / manifest.ABOUT).write_text(json.dumps(about))
    made = []
    for name in showing.IN_TWOS:
        (tmp_path / name).mkdir()
    (tmp_path / "two_speakers" / manifest.ABOUT).write_text("{}")
    monkeypatch.setattr(
        showing.catalogue,
        "lookup",
        lambda name: two_speakers.replace(
            two_speakers.CORPUS, prepare=lambda target, config, tell: made.append(target.name)
        ),
    )
    folders = showing.in_twos(corpus, 1, tiny=False)
    assert [folder.name for folder in folders] == list(showing.IN_TWOS)
    assert made == ["two_speakers_noisy"]
