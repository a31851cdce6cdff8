"""The corpora by their names, and where they lie."""

import logging
from functools import cache
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
LOG = logging.getLogger(__name__)
DATA = Path("data")  # where a corpus lies that is named without a folder


FORMER = {corpus.former: corpus.name for corpus in CORPORA.values() if corpus.former}


def lookup(name: str) -> Corpus:
    """A corpus by its name, or by its former name. UserError for an unknown name."""
    name = FORMER.get(name, name)
    if name not in CORPORA:
        raise UserError(f"no corpus '{name}'; there are: {', '.join(CORPORA)}")
    return CORPORA[name]


def where(corpus: str) -> Path:
    """The prepared folder of a corpus, given as a path or as a name in data/.

    A relative path starts here or in the folder that holds data/: a notebook then finds the corpora
    of a training that was started in the root of the repository.
    """
    paths = Path(corpus), DATA.parent / corpus
    return next((path for path in paths if path.is_dir()), folder_of(corpus, DATA))


def folder_of(name: str, parent: Path) -> Path:
    """The folder of a corpus in `parent`, prepared or not.

    A corpus that has another name since version 0.1 may lie under its former name, which is logged.
    """
    folder = parent / name
    if folder.is_dir() or name not in {*CORPORA, *FORMER}:
        return folder
    corpus = lookup(name)
    known = [parent / known for known in (corpus.name, corpus.former) if known]
    found = next((folder for folder in known if folder.is_dir()), known[0])
    if found.name == corpus.former:
        _log_former(found, corpus.name)
    return found


@cache
def _log_former(folder: Path, name: str) -> None:
    LOG.warning("%s: corpus %s under its former name", folder, name)


def shortest(folder: Path) -> str:
    """What to call a prepared folder: its name, if it lies in data/."""
    return folder.name if folder.parent == DATA else str(folder)
