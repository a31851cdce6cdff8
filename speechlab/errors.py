"""User-facing errors, names that a user may have meant, and how foreign text is shown."""

import errno
from collections.abc import Iterable, Sequence

LONGEST_MESSAGE = 2000  # characters
NEAR = 0.65  # the least likeness of two names, of 1


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


def reason(error: BaseException) -> str:
    """Why a file could not be read or written: one line, without the name of the file."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    said = getattr(error, "strerror", None) or " ".join(str(error).split())
    return shown(said or type(error).__name__, 300)


def meant(name: str, known: Iterable[str]) -> str:
    """ " (did you mean '…'?)" with the known name nearest to `name`; "" where none is near.

    Case does not matter. Of a dotted name the last part alone is enough. A beginning of three
    letters or more counts as near.
    """
    import difflib

    if len(name) < 3:
        return ""
    known = list(known)
    spelt = {word.lower().rpartition(".")[2]: word for word in known}
    spelt |= {word.lower(): word for word in known}
    near = difflib.get_close_matches(name.lower(), spelt, n=1, cutoff=NEAR)
    near = near or [word for word in spelt if word.startswith(name.lower())]
    return f" (did you mean '{spelt[near[0]]}'?)" if near else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not among the known ones of its kind ("corpus")."""
    known = list(known)
    return UserError(f"no {kind} '{name}'{meant(name, known)}; there are: {', '.join(known)}")


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
