"""User-facing errors, and how text of unknown origin is shown."""

LONGEST_MESSAGE = 2000  # characters


class UserError(Exception):
    """Bad input: one line that names the problem and the fix. The command line exits with 2."""

    def __str__(self) -> str:
        """The message as `shown` gives it: names of files in it can hold any character."""
        return shown(super().__str__())


def shown(text: object, longest: int = LONGEST_MESSAGE) -> str:
    """Text on one line: control characters and surrogates escaped, a long text cut in the middle.

    A name from a disk, an archive or a checkpoint can hold codes that move the cursor.
    """
    safe = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))
    if len(safe) <= longest:
        return safe
    half = (longest - 3) // 2
    return f"{safe[:half]} … {safe[-half:]}"
