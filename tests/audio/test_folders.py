"""One listing of sound files for every command: links, loops, and what is left out."""

import os
from pathlib import Path

from speechlab.audio.folders import LINKS_MAX, listing


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names(found):
    return [path.as_posix() for path in found.files]


def test_files_are_sorted_and_the_rest_is_counted(tmp_path):
    make(
        tmp_path, "b/z.WAV", "b.wav", "a/n.flac", "a/t.m4a", "u.M4A", "README", ".h.wav", ".d/x.wav"
    )
    make(tmp_path, "__MACOSX/b.wav", "dir.wav/c.caf")
    found = listing(tmp_path)
    assert names(found) == ["a/n.flac", "b/z.WAV", "b.wav", "dir.wav/c.caf"]
    assert found.endings == {".m4a": 2, "": 1}
    assert found.left_out == "files that are not read as sound (2 .m4a, 1 without an ending)"


def test_linked_folders_are_entered_and_loops_are_named(tmp_path):
    make(tmp_path, "in/a/1.wav", "far/2.wav")
    (tmp_path / "in/link").symlink_to("../far")
    (tmp_path / "far/back").symlink_to("../in")
    (tmp_path / "in/self").symlink_to("self")
    (tmp_path / "in/gone").symlink_to("nowhere")
    (tmp_path / "in/self.wav").symlink_to("self.wav")  # an error of the reader, with its name
    found = listing(tmp_path / "in")
    assert names(found) == ["a/1.wav", "link/2.wav", "self.wav"]
    assert {path.as_posix(): reason for path, reason in found.skipped.items()} == {
        "link/back": "a link to a folder above it",
        "self": "a link to nothing",
        "gone": "a link to nothing",
    }


def test_folders_that_link_to_each_other_are_bounded(tmp_path):
    for a in range(6):
        make(tmp_path, f"{a}/x.wav")
        for b in range(6):
            (tmp_path / f"{a}/{b}").symlink_to(f"../{b}")
    found = listing(tmp_path / "0")
    assert max(len(path.parts) for path in found.files) == LINKS_MAX + 1
    assert f"behind {LINKS_MAX} linked folders" in set(found.skipped.values())


def test_a_deep_tree_is_no_recursion(tmp_path):
    deep = tmp_path
    for _ in range(1100):
        deep /= "d"
        deep.mkdir()
    (tmp_path / "a.wav").touch()
    try:
        assert names(listing(tmp_path)) == ["a.wav"]
    finally:
        os.removedirs(deep)


def test_the_output_folder_is_not_entered(tmp_path):
    make(tmp_path, "a.wav", "out/b.wav")
    (tmp_path / "again").symlink_to("out")
    found = listing(tmp_path, output=tmp_path / "out")
    assert names(found) == ["a.wav"]
    assert found.skipped == {Path("out"): "the output folder", Path("again"): "the output folder"}
