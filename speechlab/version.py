"""The version, as results record it."""

__version__ = "0.1.0"
