"""What every corpus tells of itself, and how it is prepared."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Tell = Callable[[str], None]  # takes one line for the person who waits


@dataclass(frozen=True)
class Corpus:
    """A source of speech, noise or mixtures that can become a prepared folder (see `manifest`)."""

    name: str  # as in `speechlab data prepare NAME`
    title: str
    licence: str
    source: str  # where it comes from: address or doi
    gigabytes: float  # on disk, once prepared with the default options
    layout: str  # what its raw folders look like, one line each
    config: type  # frozen dataclass: the options of preparing, all with defaults
    prepare: Callable[[Path, Any, Tell], None]  # (target folder, config, tell)
    former: str = ""  # its name in version 0.1: folders and runs of that name still open
