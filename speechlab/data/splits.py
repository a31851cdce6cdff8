"""The train and the dev split of several corpora together: each read once, and disjoint."""

from collections.abc import Iterable, Sequence
from typing import Literal

from speechlab.data import manifest
from speechlab.data.corpora.catalogue import CORPORA, where
from speechlab.data.recordings import Source
from speechlab.errors import UserError


def data_hash(corpora: Sequence[str]) -> str:
    """Of all of them. UserError where one is named twice, not prepared, or damaged."""
    if len({where(name).resolve() for name in corpora}) < len(corpora):
        raise UserError(f"corpora names one twice: {', '.join(corpora)}")
    for name in corpora:
        if (where(name) / manifest.ABOUT).exists():
            continue
        if name in CORPORA:
            raise UserError(f"{where(name)}: not there yet; run `speechlab data prepare {name}`")
        raise UserError(
            f"no corpus '{name}': neither a prepared folder nor one of {', '.join(CORPORA)}"
        )
    return "+".join(manifest.data_hash(where(name)) for name in corpora)


def read(corpora: Iterable[str], split: Literal["train", "dev"]) -> dict[str, list[Source]]:
    """What they have in a split, by kind; each manifest, which may be long, is read once."""
    found: dict[str, list[Source]] = {kind: [] for kind in manifest.KINDS}
    for folder in map(where, corpora):
        for item in manifest.read(folder, split):
            found[item.kind].append(Source(folder, item))
    return found


def check_disjoint(train: dict[str, list[Source]], dev: dict[str, list[Source]]) -> None:
    """UserError where one corpus trains on a speaker or recording that another scores.

    Within one of them that cannot be: `manifest.write` refuses it. Names of files and of
    recordings' items may be the same in two corpora.
    """
    trained = {
        key: source.folder
        for sources in train.values()
        for source in sources
        for key in manifest.origins(source.item)
    }
    for sources in dev.values():
        for source in sources:
            for key in manifest.origins(source.item):
                if key in trained:
                    raise UserError(
                        f"{' '.join(key)} is in train of {trained[key]} and in dev of "
                        f"{source.folder}: leave one of them out, or prepare both as one corpus"
                    )
