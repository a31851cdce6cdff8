"""A notebook's cells in one process, without a kernel's: `python -m tests.support.kernel JOB`.

JOB is a JSON file with notebook, executed, cwd (paths) and parameters. Papermill's own function
puts the parameters in. Streams, displays and results of the cells go to the executed notebook.
"""

import json
import os
import sys
from pathlib import Path

import nbformat
from IPython.core.displayhook import CapturingDisplayHook
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from nbformat import NotebookNode
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook


class Shell(InteractiveShell):
    """IPython without a terminal; figures are shown inline, as in a kernel."""

    def enable_gui(self, gui: str | None = None) -> None:
        """Nothing to do: there is no window."""


def execute(notebook: NotebookNode) -> None:
    """Run the code cells in order and fill in their outputs; exit at the first that fails."""
    shell = Shell.instance()
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        with capture_output() as captured:
            shell.display_trap.hook = CapturingDisplayHook(shell, captured._outputs)
            done = shell.run_cell(cell.source, store_history=True)
        if not done.success:
            error = done.error_before_exec or done.error_in_exec
            sys.exit(f"{captured.stdout}\n{type(error).__name__}: {error}")
        streams = {"stdout": captured.stdout, "stderr": captured.stderr}
        cell.outputs = [
            nbformat.v4.new_output("stream", name=name, text=text)
            for name, text in streams.items()
            if text
        ]
        cell.outputs += [
            nbformat.v4.new_output("display_data", one.data, metadata=one.metadata or {})
            for one in captured.outputs
        ]


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    notebook = load_notebook_node(job["notebook"])
    notebook = parameterize_notebook(notebook, job["parameters"])
    os.chdir(job["cwd"])
    execute(notebook)
    nbformat.write(notebook, job["executed"])
