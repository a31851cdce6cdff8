"""Every error of the arguments is one line that names the fix; options never take a positional."""

import shlex

import pytest

from speechlab.cli import main
from speechlab.cli.parser import BEGIN, DECIDING, EXAMPLES, LISTS, commands

WRONG = [
    ("enhnace a.wav", "no command 'enhnace' (did you mean 'enhance'?); there are: "),
    ("data prepar synthetic", "no command 'prepar' (did you mean 'prepare'?)"),
    ("enhance a.wav --outptu out", "no option --outptu (did you mean '--output'?)"),
    ("enhance a.wav --outptu=out --checkpoint x", "no option --outptu (did you mean '--output'?)"),
    ("enhance -z a.wav", "no option -z"),
    ("enhance a.wav", "the following arguments are required: "),
    ("enhance a.wav --checkpoint x --output y b.wav", "'b.wav': write all FILE_OR_DIR next to"),
    ("separate a.wav --level mixtur", "no choice 'mixtur' (did you mean 'mixture'?); there are: "),
    ("train x y", "'y': one word too many"),
    ("train x lr=1", "'lr=1': write --set lr=1"),
    ("train x --set a=1 b=2", "--set takes one KEY=VALUE; write --set a=1 --set b=2"),
    ("train --set a=1 b.c=2 x", "--set takes one KEY=VALUE; write --set a=1 --set b.c=2"),
    ("train x --set=a=1 b=2", "--set takes one KEY=VALUE; write --set a=1 --set b=2"),
    ("resume runs/x --set a=1 b=2", "--set takes one KEY=VALUE; write --set a=1 --set b=2"),
    ("finetune x --name y --set a=1 b=2", "--set takes one KEY=VALUE"),
    ("data prepare synthetic --set a=1 b=2", "--set takes one KEY=VALUE"),
    ("data prepare --set a=1 b=2 synthetic", "--set takes one KEY=VALUE"),
    ("study 02 --set a=1 b=2", "--set takes one KEY=VALUE"),
    ("study --each a=1,2 b=2", "--each takes one KEY=A,B; write --each a=1,2 --each b=2"),
    ("evaluate --output x --metrics stoi set", "required: test_set (write them before --metrics"),
    ("train x --set", "expected one argument"),
    ("train x --name ''", "an empty argument, behind --name; is a variable of the shell not set?"),
    ("data prepare synthetic --folder=", "an empty argument, '--folder='; is a variable"),
    ("resume ''", "an empty argument, ''; is a variable of the shell not set?"),
    ("train x\x1b[2J y\x1b[2J", r"'y\x1b[2J'"),
]


@pytest.mark.parametrize(("command", "said"), WRONG)
def test_an_error_is_one_line_with_the_fix(capsys, command, said):
    with pytest.raises(SystemExit) as stopped:
        main.main(shlex.split(command))
    printed = capsys.readouterr()
    assert stopped.value.code == 2 and not printed.out
    assert printed.err.startswith("speechlab: ") and printed.err.count("\n") == 1
    assert said in printed.err and "--help`" in printed.err


@pytest.mark.parametrize(
    ("command", "positional"),
    [
        ("train --set a=1 --set b=2 {}", "experiment"),
        ("train {} --set a=1 --set b=2", "experiment"),
        ("resume --set a=1 --set b=2 {}", "folder"),
        ("finetune --name n --set=a=1 --set b=2 {}", "checkpoint"),
        ("data prepare --set a=1 --set b=2 {}", "name"),
        ("study --set a=1 --each c=2,3 --set b=2 {}", "names"),
    ],
)
@pytest.mark.parametrize("name", ["x", "runs/lr=1"])
def test_set_leaves_the_positional_alone(command, positional, name):
    options = main._parser().parse_args(command.format(name).split())
    assert options.set == ["a=1", "b=2"]
    assert getattr(options, positional) in (name, [name])


COMMANDS = [*commands(main._parser())]
OF_WEIGHTS = {"enhance", "separate", "stream", "evaluate", "import"}
OF_WEIGHTS |= {"train", "resume", "finetune", "prune"}
SHORT = {"output": "-o", "checkpoint": "-c", "quiet": "-q", "verbose": "-v"}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.prog)
def test_help_ends_with_examples_that_are_understood(command):
    assert command.prog.partition(" ")[2] in EXAMPLES
    text = command.format_help()
    lines = text[text.index(BEGIN) :].splitlines()[1:]
    assert lines and all(line.startswith(f"  {command.prog}") for line in lines)
    for line in lines:
        assert main._parser().parse_args(shlex.split(line.partition(">")[0])[1:])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.prog)
def test_short_options_mean_the_same_everywhere(command):
    name = command.prog.partition(" ")[2]
    long = {action.dest: action.option_strings for action in command._actions}
    names = SHORT | ({"name": "-n"} if name in ("train", "finetune") else {})
    for dest, short in names.items():
        assert not long.get(dest) or short in long[dest]
    assert ("quiet" in long) == (name not in LISTS)
    assert ("verbose" in long) == (name in DECIDING)
    assert ("offline" in long) == (name in OF_WEIGHTS)
