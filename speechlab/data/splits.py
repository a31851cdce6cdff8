"""The train and dev splits of several corpora together: each read once, checked to be disjoint."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Literal

from speechlab.data import digests, manifest
from speechlab.data.recordings import Source
from speechlab.errors import UserError

TRAINED = ("train", "dev")


class Corpora:
    """Prepared corpora that one training reads."""

    def __init__(self, folders: Iterable[Path]) -> None:
        """UserError where two are the same folder."""
        self.folders = tuple(folders)
        self._splits: dict[str, dict[str, list[Source]]] = {}
        if len({folder.resolve() for folder in self.folders}) < len(self.folders):
            raise UserError(f"corpora names one twice: {', '.join(map(str, self.folders))}")

    @cached_property
    def data_hash(self) -> str:
        """Of all of them. UserError where one is not prepared or is damaged."""
        return "+".join(map(manifest.data_hash, self.folders))

    def read(self, split: Literal["train", "dev"]) -> dict[str, list[Source]]:
        """The recordings of a split by kind."""
        if split not in self._splits:
            found: dict[str, list[Source]] = {kind: [] for kind in manifest.KINDS}
            for folder in self.folders:
                for item in manifest.read(folder, split):
                    found[item.kind].append(Source(folder, item))
            self._splits[split] = found
        return self._splits[split]

    def check_files(self) -> None:
        """UserError where sound files of train or dev are not those that were prepared."""
        kinds = [found for split in TRAINED for found in self.read(split).values()]
        for folder in self.folders:
            items = [x.item for found in kinds for x in found if x.folder == folder]
            digests.check(folder, items)

    def check_disjoint(self) -> None:
        """UserError where a speaker or recording in train of one corpus is in dev of another.

        Within one corpus `manifest.write` refuses that. Names of files and items may be the same
        in two corpora.
        """
        trained = {
            key: source.folder
            for sources in self.read("train").values()
            for source in sources
            for key in manifest.origins(source.item)
        }
        for source in (source for sources in self.read("dev").values() for source in sources):
            for key in manifest.origins(source.item):
                if key in trained:
                    raise UserError(
                        f"{' '.join(key)} is in train of {trained[key]} and in dev of "
                        f"{source.folder}: leave one of them out, or prepare both as one corpus"
                    )
