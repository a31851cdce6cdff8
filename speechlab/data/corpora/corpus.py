"""The type of a corpus: licence, source, settings, how to prepare it."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from speechlab.progress import Tell


@dataclass(frozen=True)
class Corpus:
    """A source of speech, noise or mixtures to convert into a prepared folder (see `manifest`)."""

    name: str  # as in `speechlab data prepare NAME`
    title: str
    licence: str
    source: str  # address or DOI
    gigabytes: float  # on disk, once prepared with the default options
    layout: str  # of the raw folders, one line each
    options: str  # name of the class of the options, a frozen dataclass with defaults
    module: str = ""  # of this package, with `prepare` and that class, if not `name`
    former: str = ""  # name in version 0.1; folders and runs of that name still open

    @property
    def config(self) -> type:
        """The class of the options of `prepare`."""
        return getattr(self._imported(), self.options)

    def prepare(self, target: Path, config: Any, tell: Tell) -> None:
        """Make the prepared folder. UserError says what is missing."""
        self._imported().prepare(target, config, tell)

    def _imported(self) -> ModuleType:
        """On first use: the list of corpora stays light."""
        return import_module(f"speechlab.data.corpora.{self.module or self.name}")
