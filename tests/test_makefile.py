"""`make env` shows that it works, in a few lines, and fails where pip fails."""

import os
import shutil
import subprocess

import pytest

from tests.support.warm import ROOT

# In the place of Python: `-m venv .venv` makes a Python that speaks as pip does.
PYTHON = """#!/bin/sh
mkdir -p .venv/bin
cat > .venv/bin/python <<'END'
#!/bin/sh
i=0
while [ $i -lt 150 ]; do
    i=$((i + 1)); echo "Collecting package$i"; echo "  Downloading package$i.whl (1.2 MB)"
done
echo "Downloading https://host/torch-2.13.whl (187.3 MB)"
{end}
END
chmod +x .venv/bin/python
"""


def made(folder, end):
    shutil.copy(ROOT / "Makefile", folder)
    for name in ("pyproject.toml", "constraints.txt"):
        (folder / name).touch()
    (folder / "fake").write_text(PYTHON.replace("{end}", end))
    (folder / "fake").chmod(0o755)
    environment = os.environ | {"MAKEFLAGS": ""}
    command = ["make", "env", "PYTHON=./fake"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("end", ["Successfully installed a b", "ERROR: No matching distribution"])
def test_the_installation_shows_progress(tmp_path, end):
    ok = end.startswith("S")
    done = made(tmp_path, f'echo "{end}"; exit {0 if ok else 1}')
    assert (done.returncode == 0) is ok is (tmp_path / ".venv" / ".installed").exists()
    lines = done.stdout.splitlines()
    assert "  140 packages found" in lines and "  Downloading torch-2.13.whl (187.3 MB)" in lines
    assert len(lines) < 40 and ("  installed" in lines) is ok
    assert end in (done.stdout if not ok else (tmp_path / ".venv" / "install.log").read_text())
