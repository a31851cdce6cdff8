"""What a notebook's file tells: values of its parameters, what it names, what lies there."""

from pathlib import Path

import pytest

from speechlab.data import manifest
from speechlab.errors import UserError
from speechlab.study.notebooks import (
    ABSENT,
    Notebook,
    content,
    enter_folder,
    noted_inputs,
    output_folder,
)
from tests.support.study_toys import write
from tests.support.toy_corpus import prepared


@pytest.mark.parametrize(
    ("default", "text", "value"),
    [
        ("0", "-3", -3),
        ("0.5", "2", 2),
        ("0.5", "1e-3", 1e-3),
        ("True", "false", False),
        ("''", "7", "7"),
        ("None", "7", 7),
        ("None", "a b", "a b"),
        ("[1, 2]", "3", [3]),
        ("[1, 2]", "[3, 4]", [3, 4]),
        ("['a']", "b,c", ["b", "c"]),
        ("[*['a'], *['b']]", "c", ["c"]),
        ("True", "1", "true or false"),
        ("0", "1.5", "a whole number"),
        ("0", "true", "a whole number"),
        ("[1, 2]", "3,x", "a whole number"),
    ],
)
def test_a_value_has_the_type_of_its_default(tmp_path, default, text, value):
    write(tmp_path, "01_one", f"#x = {default}")
    notebook = Notebook.read(tmp_path / "01_one.ipynb")
    if isinstance(value, str) and value != text:
        with pytest.raises(UserError, match=f"x must be {value}, not '{text}'"):
            notebook.value("x", text)
    else:
        assert notebook.value("x", text) == value
        assert type(notebook.value("x", text)) is type(value)


def test_every_text_of_the_parameters(tmp_path):
    write(tmp_path, "01_one", "#a = 'x'\nb = [*['y', 'z'], 'w']  # v\nc: str = 'u'\nd = 1")
    notebook = Notebook.read(tmp_path / "01_one.ipynb")
    assert notebook.strings({}) == {"x", "y", "z", "w", "u"}
    assert notebook.strings({"b": ["t"], "d": 2}) == {"x", "t", "u"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "is no notebook"),
        ("[]", "is no notebook"),
        ('{"cells": [1]}', "is no notebook"),
        (None, "line 2 of its parameters cell is not Python"),
    ],
)
def test_what_is_no_notebook(tmp_path, content, told):
    write(tmp_path, "01_one", "#a = 1\nb =")
    path = tmp_path / "01_one.ipynb"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=f"01_one.ipynb: {told}"):
        Notebook.read(path)


def test_what_lies_at_a_path(tmp_path):
    """Other content, another text: of files, runs and corpora."""
    assert content(tmp_path / "no") == ABSENT
    (tmp_path / "a").mkdir()
    seen = [content(tmp_path / "a")]
    for text in ("1", "2"):
        (tmp_path / "a" / "best.safetensors").write_text(text)
        seen += [content(tmp_path / "a")]
        assert seen[-1] == content(tmp_path / "a" / "best.safetensors")
    prepared(tmp_path / "corpus")
    assert content(tmp_path / "corpus") == manifest.data_hash(tmp_path / "corpus")
    assert seen[0] == "there" and len(set(seen)) == 3


def test_a_copy_without_notes():
    assert noted_inputs({}) == {} == noted_inputs({"cells": [{"outputs": [{"data": {}}]}]})


def test_only_what_is_published_replaces_the_committed():
    assert output_folder("../results", publish=True) == Path("../results")
    assert output_folder("../results", publish=False) == Path("../results/local")


@pytest.mark.parametrize("cwd", [".", "notebooks"])
def test_paths_count_from_the_notebooks(cwd, tmp_path, monkeypatch):
    write(tmp_path / "notebooks", "01_one", "#a = 1")
    monkeypatch.chdir(tmp_path / cwd)
    enter_folder()
    enter_folder()  # as does a cell that is run again
    assert Path.cwd() == tmp_path / "notebooks"


def test_elsewhere_nothing_runs(tmp_path, monkeypatch):
    """Where `../results` would be somebody else's, nothing runs."""
    monkeypatch.chdir(tmp_path)
    said = f"^{tmp_path} is not where the notebooks lie; call papermill"
    with pytest.raises(UserError, match=said):
        enter_folder()
