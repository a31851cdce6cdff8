"""Mamba models for speech enhancement and separation, compared under one protocol.

errors      user-facing errors
progress    progress reporting: a bar on a terminal, lines elsewhere
config      configurations: frozen dataclasses, JSON, override
parallel    work in parallel processes
version     the version
storage     files on disk: atomic, locked, downloaded
audio       sound files and signals
layers      layers that models are built of
models      one architecture a module
weights     load, save, import, download
losses      losses
data        corpora, mixtures, test sets
inference   models on files, folders and streams
evaluation  metrics, rows, statistics, cost
training    the training loop
pruning     channels that are removed
report      tables and figures of the papers
study       experiments and notebooks
cli         the command `speechlab`

Imports run one way, from `cli` down to `errors` (CONTRIBUTING.md has the order).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from speechlab.errors import UserError
from speechlab.version import __version__

if TYPE_CHECKING:
    from speechlab.evaluation.evaluate import evaluate
    from speechlab.inference.enhance import enhance_all as enhance
    from speechlab.inference.separate import separate_all as separate
    from speechlab.inference.stream import Stream
    from speechlab.models import SYSTEMS
    from speechlab.study.experiments import EXPERIMENTS
    from speechlab.study.launch import train
    from speechlab.weights.checkpoints import load, save

_LAZY = {  # public name: where it is; imported on first use, so `import speechlab` stays light
    "EXPERIMENTS": "study.experiments:EXPERIMENTS",
    "SYSTEMS": "models:SYSTEMS",
    "Stream": "inference.stream:Stream",
    "enhance": "inference.enhance:enhance_all",
    "evaluate": "evaluation.evaluate:evaluate",
    "load": "weights.checkpoints:load",
    "save": "weights.checkpoints:save",
    "separate": "inference.separate:separate_all",
    "train": "study.launch:train",
}
__all__ = [
    "EXPERIMENTS",
    "SYSTEMS",
    "Stream",
    "UserError",
    "__version__",
    "enhance",
    "evaluate",
    "load",
    "save",
    "separate",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'speechlab' has no attribute '{name}'")
    module, _, attribute = _LAZY[name].partition(":")
    return getattr(import_module(f"speechlab.{module}"), attribute)


def __dir__() -> list[str]:
    return __all__
