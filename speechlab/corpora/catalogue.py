"""The corpora by their names, and where they lie."""

from pathlib import Path

from speechlab.corpora import (
    dns2020,
    folder,
    libri2mix,
    synthetic,
    voicebank_demand,
    wsj0_2mix,
)
from speechlab.corpora.corpus import Corpus
from speechlab.errors import UserError

CORPORA: dict[str, Corpus] = {
    module.CORPUS.name: module.CORPUS
    for module in (synthetic, voicebank_demand, dns2020, libri2mix, wsj0_2mix, folder)
}
DATA = Path("data")  # where a corpus lies that is named without a folder


def lookup(name: str) -> Corpus:
    """A corpus by its name. UserError for another one."""
    if name not in CORPORA:
        raise UserError(f"no corpus '{name}'; there are: {', '.join(CORPORA)}")
    return CORPORA[name]


def where(corpus: str) -> Path:
    """The prepared folder of a corpus: a path, or a name in data/."""
    return Path(corpus) if Path(corpus).is_dir() else DATA / corpus
