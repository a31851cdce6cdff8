"""User-facing errors."""


class UserError(Exception):
    """Bad input: one line that names the problem and the fix. The command line exits with 2."""
