"""The corpora by their names, and where they lie."""

from pathlib import Path

from speechlab.data.corpora import (
    dns2020,
    folder,
    libri2mix,
    synthetic,
    two_speakers,
    voicebank_demand,
    wsj0_2mix,
)
from speechlab.data.corpora.corpus import Corpus
from speechlab.errors import UserError

CORPORA: dict[str, Corpus] = {
    corpus.name: corpus
    for corpus in (
        synthetic.CORPUS,
        voicebank_demand.CORPUS,
        dns2020.CORPUS,
        libri2mix.CORPUS,
        wsj0_2mix.CORPUS,
        two_speakers.CORPUS,
        two_speakers.NOISY,
        folder.CORPUS,
    )
}
DATA = Path("data")  # where a corpus lies that is named without a folder


def lookup(name: str) -> Corpus:
    """A corpus by its name. UserError for another one."""
    if name not in CORPORA:
        raise UserError(f"no corpus '{name}'; there are: {', '.join(CORPORA)}")
    return CORPORA[name]


def where(corpus: str) -> Path:
    """The prepared folder of a corpus: a path, or a name in data/.

    A path counts from here or from the folder that holds data/, so that a notebook finds what a
    training named that was begun there.
    """
    paths = Path(corpus), DATA.parent / corpus
    return next((path for path in paths if path.is_dir()), DATA / corpus)


def shortest(folder: Path) -> str:
    """What to call a prepared folder: its name, if it lies in data/."""
    return folder.name if folder.parent == DATA else str(folder)
