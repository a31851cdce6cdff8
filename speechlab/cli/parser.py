"""The argument parser of all commands: one line per error, near names, examples as they are typed.

Each subcommand has a parser of this class. It refuses words that it does not know itself, so that
the error names the command and its nearest option.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from speechlab.errors import meant, shown, unknown

SETTING = "KEY="  # begins the metavar of an option that takes one assignment and repeats
EXAMPLES = "examples:\n"


class Parser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` whose errors are one line. Exit code 2, as of `UserError`."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{"formatter_class": Formatter} | settings)
        self._greedy = ""  # the option that took all the words behind it

    def error(self, message: str) -> NoReturn:
        if "are required" in message and self._greedy:
            message += f" (write them before {self._greedy}, which takes all words behind it)"
        self.exit(2, f"speechlab: {shown(message)}; see `{self.prog} --help`\n")

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        words = list(sys.argv[1:] if args is None else args)
        if self._subparsers is None:
            self._check_options(words)
            self._check_settings(words)
        options, extra = super().parse_known_args(words, namespace)
        if extra:
            self.error(self._not_understood(extra))
        return options, extra

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        kind = "command" if isinstance(action, argparse._SubParsersAction) else "choice"
        message = str(unknown(kind, str(value), map(str, action.choices)))
        raise argparse.ArgumentError(action if action.option_strings else None, message)

    def _check_options(self, words: Sequence[str]) -> None:
        """An unknown option is reported before anything that is missing."""
        known = self._option_string_actions
        greedy = (word for word in words if word in known and known[word].nargs == "+")
        self._greedy = next(greedy, "")
        for word in words[: words.index("--")] if "--" in words else words:
            name = word.partition("=")[0]
            if not re.match(r"-[^\W\d]|--.", word) or " " in word:
                continue  # a value, such as -5
            if name.startswith("--") and not any(option.startswith(name) for option in known):
                self.error(f"no option {name}{meant(name, known)}")
            if not name.startswith("--") and word[:2] not in known:
                self.error(f"no option {word[:2]}; a file of this name is written ./{word}")

    def _check_settings(self, words: Sequence[str]) -> None:
        """One KEY=VALUE per option: what follows is not read as a positional argument."""
        for option, word, following in zip(words, words[1:], [*words[2:], ""], strict=False):
            action = self._option_string_actions.get(option.partition("=")[0])
            if action is None or not str(action.metavar).startswith(SETTING):
                continue
            option, equals, given = option.partition("=")
            word, following = (given, word) if equals else (word, following)
            if _is_setting(following):
                example = f"{option} {word} {option} {following}"
                self.error(f"{option} takes one {action.metavar}; write {example}")

    def _not_understood(self, words: Sequence[str]) -> str:
        """The error for words that belong to no argument."""
        settings = [a for a in self._actions if str(a.metavar).startswith(SETTING)]
        if settings and _is_setting(words[0]):
            return f"'{words[0]}': write {settings[0].option_strings[0]} {words[0]}"
        several = [a for a in self._get_positional_actions() if a.nargs in ("+", "*")]
        if several:
            return f"'{words[0]}': write all {several[0].metavar} next to each other"
        return f"'{words[0]}': one word too many"


class Formatter(argparse.HelpFormatter):
    """Wraps descriptions, but not the examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith(EXAMPLES):
            return text
        return super()._fill_text(text, width, indent)


def examples(*lines: str) -> str:
    """The epilog of a command: lines as they are typed."""
    return EXAMPLES + "\n".join(f"  {line}" for line in lines)


def _is_setting(word: str) -> bool:
    return bool(re.match(r"[^\W\d][\w.]*=", word)) and not Path(word).exists()
