"""Errors that a user can mend."""


class UserError(Exception):
    """Bad input: one line that names what is wrong and the fix.

    The command line prints it and exits with 2.
    """
