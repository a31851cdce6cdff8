"""What notebook 01 shows of prepared corpora: their contents and mixtures of two speakers."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from torch import Tensor

from speechlab.config import override, replaced
from speechlab.data import manifest
from speechlab.data.corpora import catalogue, survey, two_speakers
from speechlab.parallel import n_processors
from speechlab.study import experiments, launch, runner

TITLES = {two_speakers.CORPUS.name: "clean", two_speakers.NOISY.name: "in a room"}


def two_speaker_corpora(folder: Path, jobs: int, tiny: bool) -> list[Path]:
    """The corpora of two speakers beside the synthetic one in `folder`, prepared where missing.

    Beside another corpus there are none. tiny: stand-ins.
    """
    if manifest.about(folder).get("corpus") != "synthetic":
        return []
    for name in TITLES:
        made, target = catalogue.lookup(name), catalogue.folder_of(name, folder.parent)
        if tiny:
            runner.stand_in(folder.parent, name)
        elif not (target / manifest.ABOUT).exists():
            made.prepare(target, override(made.config(), source=str(folder), jobs=jobs), print)
    return [catalogue.folder_of(name, folder.parent) for name in TITLES]


def contents(folders: Iterable[Path]) -> pd.DataFrame:
    """Contents of train and dev, by corpus, split and kind: files, hours, speakers, lengths."""
    listed = pd.DataFrame(
        [
            {"corpus": folder.name, "split": split, "kind": item.kind}
            | {"s": item.seconds, "speakers": item.speakers}
            for folder in folders
            for split in ("train", "dev")
            for item in manifest.read(folder, split)
        ]
    )
    return listed.groupby(["corpus", "split", "kind"], sort=False).agg(
        files=("s", "size"),
        hours=("s", lambda s: s.sum() / 3600),
        speakers=("speakers", lambda names: len(set().union(*names))),
        shortest_s=("s", "min"),
        longest_s=("s", "max"),
    )


def pairs(folder: Path) -> pd.DataFrame:
    """How noisy and clean belong together, a row a pair; empty where there are no pairs.

    Of own pairs as noted when they were prepared, else of the pairs of dev.
    """
    if (folder / survey.PAIRS).exists():
        table = pd.read_csv(folder / survey.PAIRS, keep_default_na=False, na_values=["nan"])
    else:
        mixtures = [item for item in manifest.read(folder, "dev") if len(item.sources) == 1]
        table = pd.DataFrame(survey.measured(folder, mixtures, n_processors()))
    return table.set_index("name") if len(table) else table


def first_mixtures(folders: Iterable[Path]) -> dict[str, Tensor]:
    """The first training example of each corpus of two speakers: title -> waveform (1, T).

    Drawn as for the first experiment on it.
    """
    signals = {}
    for folder in folders:
        name = catalogue.lookup(folder.name).name
        of_corpus = (e for e in experiments.EXPERIMENTS.values() if e.corpora == (name,))
        chosen = replaced(next(of_corpus), {"corpora": (str(folder),)})
        mixture, sources = launch.training_examples(chosen).example(0, 0, 0)
        signals[f"{TITLES[name]}: mixture"] = mixture
        for number, source in enumerate(sources, start=1):
            signals[f"{TITLES[name]}: speaker {number}"] = source[None]
    return signals
