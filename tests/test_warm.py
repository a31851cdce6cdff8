"""A warm process (`tests.support.warm`) behaves as one of the interpreter's own."""

import signal
import subprocess
import sys

import pytest

from tests.support import warm

WHOLE = "import os, sys; print(sys.argv, os.getcwd(), os.environ['WHO']); sys.exit(3)"


@pytest.mark.parametrize(
    "arguments",
    [
        ("-c", WHOLE, "a b"),
        ("-c", "raise SystemExit('said')"),
        ("-c", "print(1); 1 / 0"),
        ("-m", "json.tool", "--help"),
        ("script.py", "x"),
        ("-c", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"),
        ("-c", "import atexit; atexit.register(print, 'last')"),
    ],
)
def test_it_is_as_a_cold_one(tmp_path, arguments):
    (tmp_path / "script.py").write_text("import sys\nif __name__ == '__main__': print(sys.argv[1])")
    options = {"cwd": tmp_path, "env": {"WHO": "me"}}
    cold = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **options)
    done = warm.run(*arguments, **options)
    assert (done.returncode, done.stdout) == (cold.returncode, cold.stdout)
    assert done.stderr.splitlines()[-1:] == cold.stderr.splitlines()[-1:]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_signals_reach_it(tmp_path, number):
    waits = "import time, pathlib; pathlib.Path('here').touch(); time.sleep(1800)"
    with warm.start("-c", waits, cwd=tmp_path) as process:
        while not (tmp_path / "here").exists():
            assert process.poll() is None
        process.send_signal(number)
        assert process.wait() == -number
