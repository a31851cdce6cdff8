"""speechlab: Mamba models for speech enhancement and separation, compared under one protocol."""

from typing import TYPE_CHECKING, Any

from speechlab.version import __version__

if TYPE_CHECKING:
    from speechlab.weights.checkpoints import load

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """`load` on first use: `import speechlab` alone stays free of PyTorch."""
    if name == "load":
        from speechlab.weights.checkpoints import load

        return load
    raise AttributeError(f"module 'speechlab' has no attribute '{name}'")
