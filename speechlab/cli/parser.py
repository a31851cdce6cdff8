"""The argument parser of all commands: one line per error, near names, examples as they are typed.

Each subcommand has a parser of this class. It refuses words that it does not know itself, so that
the error names the command and its nearest option.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from speechlab.errors import meant, shown, unknown

SETTING = "KEY="  # begins the metavar of an option that takes one assignment and repeats
BEGIN = "examples:\n"
LISTS = ("doctor", "weights list", "data list", "data show", "runs", "completion")  # without -q
# Arguments that may name published weights, or settings that do: the start, the teacher
OF_WEIGHTS = {"checkpoint", "source", "experiment", "RUN"}
DECIDING = ("enhance", "separate", "stream")  # with -v
PUBLISHED = "Experiment_CleanU_Mamba2"
EXAMPLES = {  # command: what is typed behind it
    "doctor": ("",),
    "weights list": ("",),
    "weights download": (PUBLISHED,),
    "import": (
        "SEMamba_advanced.pth semamba.safetensors --system semamba_advanced",
        "results/runs/mine streaming.safetensors --normalize running",
    ),
    "enhance": (
        f"noisy.wav -c {PUBLISHED} -o clean.wav",
        f"noisy/ -c {PUBLISHED} -o clean",
        "'noisy/**/*.flac' -c results/runs/mine -o clean --device auto",
    ),
    "separate": (
        "mix.wav -c results/runs/sepmamba-tiny -o speaker.wav",
        "mix/ -c results/runs/sepmamba-tiny -o separated",
    ),
    "stream": (
        f"-c {PUBLISHED} -o talk.wav",
        f"-c {PUBLISHED} --input noisy.wav -o clean.wav",
        "--list-devices",
    ),
    "evaluate": (
        f"data/dns2020_no_reverb -c {PUBLISHED} -o rows.csv",
        "my_set --estimates clean -o rows.csv --metrics pesq_wb stoi",
    ),
    "check-metrics": ("data/dns2020_no_reverb",),
    "data list": ("",),
    "data show": ("folder",),
    "data verify": ("data/folder",),
    "data prepare": ("synthetic", "folder --set raw=my_recordings --set speakers=folder"),
    "train": (
        "--list",
        "cleanumamba-tiny --list",
        "cleanumamba-tiny -n mine --set training.lr=1e-3 --set training.n_steps=2000",
    ),
    "resume": ("results/runs/mine --set n_steps=3000",),
    "finetune": (
        f"{PUBLISHED} -n tuned",
        f"{PUBLISHED} -n steady --experiment stream-ready --set model.normalize=running",
    ),
    "prune": (
        f"{PUBLISHED} -n small --to 200k",
        "results/runs/mine -n fast --to 60M --by macs --set pruning.ranking.multiple=8",
    ),
    "runs": ("", "mine tuned"),
    "study": ("01 02 --profile smoke", "02 --each seed=0,1,2"),
    "completion": ("bash > ~/.speechlab.bash; echo '. ~/.speechlab.bash' >> ~/.bashrc",),
}


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
            self._check_empty(words)
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

    def _check_empty(self, words: Sequence[str]) -> None:
        """An empty path would be the current folder, an empty name the default one."""
        for before, word in zip(["", *words], words, strict=False):
            if not word or re.fullmatch(r"--[\w-]+=", word):
                place = f"behind {before}" if not word and before else f"'{word}'"
                self.error(f"an empty argument, {place}; is a variable of the shell not set?")

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
        if text.startswith(BEGIN):
            return text
        return super()._fill_text(text, width, indent)


def commands(parser: argparse.ArgumentParser) -> Iterator[Parser]:
    """The parsers of all commands that run: those without subcommands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from commands(inner)
    if parser._subparsers is None:
        yield parser


def complete(parser: Parser) -> None:
    """Give every command its examples and the options that many share.

    Those that work have -q, those that decide something -v, those with weights --offline.
    """
    for command in commands(parser):
        name = command.prog.partition(" ")[2]
        lines = EXAMPLES.get(name, ())
        command.epilog = BEGIN + "\n".join(f"  speechlab {name} {line}".rstrip() for line in lines)
        if name in LISTS:
            continue
        if any(OF_WEIGHTS & {action.dest, action.metavar} for action in command._actions):
            command.add_argument(
                "--offline", action="store_true", help="never fetch published weights"
            )
        loudness = command.add_mutually_exclusive_group()
        loudness.add_argument(
            "-q", "--quiet", action="store_true", help="print only errors and warnings"
        )
        if name in DECIDING:
            loudness.add_argument(
                "-v", "--verbose", action="store_true", help="print the model, device, level, files"
            )


def _is_setting(word: str) -> bool:
    return bool(re.match(r"[^\W\d][\w.]*=", word)) and not Path(word).exists()
