"""What was not made by a run is never skipped, replaced or deleted; changed inputs are noticed."""

import os
import shutil

import pytest

from speechlab.audio import files
from speechlab.errors import UserError
from speechlab.inference import batch
from tests.support.commands import contents
from tests.support.sound_files import noise


@pytest.fixture
def source(tmp_path):
    """The input, noisy/a.wav."""
    files.save(tmp_path / "noisy/a.wav", noise(), 16000)
    return tmp_path / "noisy/a.wav"


def tree(folder):
    """Every name in a folder, with its bytes or its link."""
    return {
        path: path.readlink() if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
    }


def refused(command, model, folder, out, message, **settings):
    """The run is refused in one line, with and without overwriting, and nothing changes."""
    before = tree(folder)
    for overwrite in (False, True):
        with pytest.raises(UserError, match=message) as error:
            command.run(model, folder / "noisy", output=out, overwrite=overwrite, **settings)
        assert "\n" not in str(error.value) and ";" in str(error.value)
        assert tree(folder) == before


def put_file(path):
    files.save(path, noise(seed=7), 16000)


def put_folder(path):
    path.mkdir(parents=True)


def put_dead_link(path):
    path.parent.mkdir(parents=True)
    path.symlink_to("nowhere.wav")


def put_partial(path):
    path.parent.mkdir(parents=True)
    path.with_name("a.wav.part").write_bytes(b"a download")


@pytest.mark.parametrize("put", [put_file, put_folder, put_dead_link, put_partial])
def test_what_is_in_the_way_without_a_row_is_refused(tmp_path, command, model, source, put):
    put(command.outputs(tmp_path / "clean")[-1])
    refused(command, model, tmp_path, tmp_path / "clean", "exists, and .* has no row for it")


def test_a_hard_link_to_a_reference_is_refused(tmp_path, command, model, source):
    put_file(tmp_path / "clean/a.wav")
    target = command.outputs(tmp_path / "out")[0]
    target.parent.mkdir(parents=True)
    target.hardlink_to(tmp_path / "clean/a.wav")
    refused(command, model, tmp_path, tmp_path / "out", "has no row for it")
    target.unlink()
    target.hardlink_to(source)
    refused(command, model, tmp_path, tmp_path / "out", "is an input, and would be overwritten")


def test_a_copied_log_makes_no_file_ours(tmp_path, command, model, source):
    """The log names a.wav, but with the content that was made."""
    command.run(model, source, output=tmp_path / "out")
    for target in command.outputs(tmp_path / "clean"):
        put_file(target)
    shutil.copy(tmp_path / "out" / command.log, tmp_path / "clean")
    refused(command, model, tmp_path, tmp_path / "clean", "names a file of other content")


def test_a_failed_try_makes_no_file_ours(tmp_path, command, model, source):
    whole = source.read_bytes()
    source.write_bytes(whole[:500])
    [failed] = command.run(model, source, output=tmp_path / "out")
    assert (failed.status, failed.output_sha256) == ("failed", "")
    source.write_bytes(whole)
    put_file(command.outputs(tmp_path / "out")[0])
    refused(command, model, tmp_path, tmp_path / "out", "has no row for it")


@pytest.mark.parametrize(
    "content", [b"a,b\n1,2\n", b"notes", b"\0\n", b'"\n', b"\xff\xfe\n", b"\n"]
)
def test_another_program_s_log_stays(tmp_path, command, model, source, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / command.log).write_bytes(content)
    refused(command, model, tmp_path, tmp_path / "out", "is not the log of an earlier run")


def test_a_file_where_a_folder_should_be(tmp_path, command, model):
    files.save(tmp_path / "noisy/sub/a.wav", noise(), 16000)
    place = command.outputs(tmp_path / "out", "sub")[0]
    place.parent.mkdir(parents=True)
    place.write_bytes(b"x")
    refused(command, model, tmp_path, tmp_path / "out", "sub: is no folder")


def test_a_disk_that_ignores_case(tmp_path, command, model, source):
    """Twins are refused where the log has its name in capitals, too."""
    put_file(tmp_path / "noisy/A.wav")
    assert len(command.run(model, tmp_path / "noisy", output=tmp_path / "out")) == 2
    log = tmp_path / "out" / command.log
    log.with_name(command.log.swapcase()).symlink_to(command.log)
    with pytest.raises(UserError, match="would have one name in"):
        command.run(model, tmp_path / "noisy", output=tmp_path / "out")


# Changed inputs


def test_a_changed_input_is_processed_again(tmp_path, command, model, source):
    """Of the same size and time, too; the log has the digests, in the form of `sha256sum`."""
    out, lines, status = tmp_path / "out", [], source.stat()
    command.run(model, source, output=out)
    old, [row] = contents(command.outputs(out)), command.rows(out)
    assert row["input_sha256"] == batch.sha256(source)
    assert row["output_sha256"].split() == [*map(batch.sha256, command.outputs(out))]
    assert command.run(model, source, output=out, tell=lines.append)[0].status == "skipped"
    assert not lines
    files.save(source, noise(seed=1), 16000)
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert source.stat().st_size == status.st_size
    [result] = command.run(model, source, output=out, tell=lines.append)
    assert result.status == "ok" and contents(command.outputs(out)) != old
    assert len(lines) == 1 and f"{source}: has changed since" in lines[0]
    assert [row["input_sha256"] for row in command.rows(out)] == [batch.sha256(source)]


def test_another_input_of_the_same_name(tmp_path, command, model, source):
    """It is no change of the first one; with the same content it is the same."""
    out, other = tmp_path / "out", tmp_path / "other/a.wav"
    command.run(model, source, output=out)
    old = contents(command.outputs(out))
    put_file(other)
    with pytest.raises(UserError, match=r"a\.wav: was made of .*, not of .*; use --overwrite"):
        command.run(model, other, output=out)
    assert contents(command.outputs(out)) == old
    shutil.copy(source, other)
    assert command.run(model, other, output=out)[0].status == "skipped"
    put_file(source)
    assert command.run(model, source, output=out, overwrite=True)[0].status == "ok"
    assert contents(command.outputs(out)) != old


def test_a_log_of_version_0_1_compares_times(tmp_path, command, model, source):
    out, lines = tmp_path / "out", []
    command.run(model, source, output=out)
    log = out / command.log
    log.write_text("".join(line.rsplit(",", 2)[0] + "\n" for line in log.read_text().splitlines()))
    assert log.read_text().splitlines()[0].endswith(",made_with")
    assert command.run(model, source, output=out, tell=lines.append)[0].status == "skipped"
    assert len(lines) == 1 and "1 outputs have no digest of their input" in lines[0]
    files.save(source, noise(seed=1), 16000)
    later = max(path.stat().st_mtime_ns for path in command.outputs(out)) + 10**9
    os.utime(source, ns=(later, later))
    assert command.run(model, source, output=out)[0].status == "ok"


# Names

NAMES = [
    os.fsdecode(b"\xff\xfe.wav"),
    "a\r.wav", "\r\n.wav", "b\x1b[2J.wav", "x\u00b2.wav", "\u202ex.wav",
    "\u00e9.wav", "e\u0301.wav", "a,\"b\".wav", "\\udcff.wav", " .wav", "\u00a0.wav", "-o.wav",
]  # fmt: skip


def test_the_second_run_equals_the_first(tmp_path, command, model):
    out, lines = tmp_path / "out", []
    for number, name in enumerate(NAMES):
        files.save(tmp_path / "noisy" / name, noise(length=400, seed=number), 16000)
    first = command.run(model, tmp_path / "noisy", output=out, tell=lines.append)
    assert [result.status for result in first] == ["ok"] * len(NAMES)
    again = command.run(model, tmp_path / "noisy", output=out, tell=lines.append)
    assert [result.status for result in again] == ["skipped"] * len(NAMES)
    assert [(a.output, a.seconds, a.output_sha256) for a in first] == [
        (b.output, b.seconds, b.output_sha256) for b in again
    ]
    assert not lines
    assert all(line.isprintable() for line in (out / command.log).read_text().split("\n"))
