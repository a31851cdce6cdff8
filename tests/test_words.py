"""Plain English: no phrase that a reader would have to translate. `make lint` runs this, too.

Each line of a failure has file, line, the phrase and what to write instead. Names that old data
needs pass: `two_talkers`, `umambanet-two-talkers`.
"""

import json
import re
from pathlib import Path

import pytest

from tests.test_house import ROOT, tracked

INSTEAD = {  # phrase, a space being any white space or comment mark -> what to write
    r"(?<!two[_-])talker": "speaker",
    r"\bheld to\b": "verified against",
    r"\bt(ake|akes|aking|aken|ook) (\w+ ){0,4}apart\b": "separate",
    r"\b(told|tells?) (\w+ ){0,2}apart\b": "distinguish; of a test: significant, n.s.",
    r"\b(go|goes|gone|went|going) on\b(?! (a|the)\b)": "resume, continue",
    r"\bwhole or not at all\b": "atomic write",
    r"\blest\b": "so that … not",
    r"\bnot at hand\b": "not available; in a table: –",
    r"\bnot built here\b": "in a table: –, with one footnote",
    r"\bnobody takes\b": "unused",
    r"\b(is|are|was|were) (not )?told\b": "say who gets what: the message names …",
    r"\ba user can mend\b": "user-facing error",
    r"\bforgets? how to\b": "degrades after N minutes",
}
SUFFIXES = {".py", ".md", ".ipynb", ".toml", ".yml", ".yaml", ".txt", ".csv", ".sbatch", ""}
# an old entry of the log is never rewritten; the files of version 0.1 are kept as they were
PASSED = ("results/LOG.md", "tests/fixtures/", "tests/test_words.py")
PASSED += ("speechlab/data/synthesis/sentences.csv",)  # spoken: other words are another corpus
LOG_SINCE = "2026-11-30"  # entries of the log from this date on are checked


def texts() -> list[Path]:
    names = {path: path.relative_to(ROOT).as_posix() for path in tracked()}
    return [p for p, n in names.items() if p.suffix in SUFFIXES and not n.startswith(PASSED)]


def prose(path: Path) -> str:
    """The text of a file; of a notebook, its cells one below the other."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])


def found(text: str) -> list[str]:
    """`line: phrase: what to write instead` for each phrase of the list."""
    problems = []
    for phrase, instead in INSTEAD.items():
        spaced = phrase.replace(" ", r"[\s#>]+")
        for match in re.finditer(spaced, text, re.IGNORECASE):
            line = text.count("\n", 0, match.start()) + 1
            problems.append((line, f"{' '.join(match[0].split())}: {instead}"))
    return [f"{line}: {problem}" for line, problem in sorted(problems)]


@pytest.mark.parametrize("path", texts(), ids=lambda path: str(path.relative_to(ROOT)))
def test_words_are_plain(path):
    problems = [f"{path.relative_to(ROOT)}:{problem}" for problem in found(prose(path))]
    assert not problems, "\n".join(problems)


def test_new_entries_of_the_log_are_plain():
    entries = re.split(r"^(?=## \d)", (ROOT / "results" / "LOG.md").read_text("utf-8"), flags=re.M)
    problems = [line for entry in entries[1:] if entry[3:] > LOG_SINCE for line in found(entry)]
    assert not problems, "\n".join(problems)


def test_the_check_sees_through_line_breaks():
    text = '"""One for each talker.\n\nA run is held\n# to it. two_talkers"""'
    assert [problem.partition(":")[0] for problem in found(text)] == ["1", "3"]
