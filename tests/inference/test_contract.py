"""The contract of `enhance` and `separate` for files and folders: one suite for both commands."""

import itertools
import os
import signal
from pathlib import Path

import pytest
import soundfile

from speechlab.audio import files
from speechlab.errors import UserError
from speechlab.evaluation.memory import added_memory
from speechlab.inference import batch
from tests.support.commands import contents
from tests.support.separation_toys import RATE
from tests.support.sound_files import BAD, GOOD, noise, write_bad, write_good
from tests.support.training_toys import ended, forked

# Every kind of file


@pytest.mark.parametrize("kind", GOOD)
def test_good_files(tmp_path, command, model, kind):
    """Rate, channels, frames and, where WAV has it, the subtype stay, in every output."""
    source = tmp_path / "in" / GOOD[kind]
    source.parent.mkdir(parents=True)
    rate, (n_channels, n_frames), subtype = write_good(source, kind)
    [result] = command.run(model, tmp_path / "in", output=tmp_path / "out")
    targets = [path.with_suffix(".wav") for path in command.outputs(tmp_path / "out", GOOD[kind])]
    assert (result.status, result.output) == ("ok", str(targets[0]))
    for target in targets:
        with target.open("rb") as file:
            information = soundfile.info(file)
        assert (information.samplerate, information.channels) == (rate, n_channels)
        assert information.frames == n_frames
        assert information.subtype == (subtype if subtype.startswith("PCM") else "PCM_16")
    [row] = command.rows(tmp_path / "out")
    assert (row["status"], row["channels"], row["reason"]) == ("ok", str(n_channels), "")
    assert float(row["seconds"]) == pytest.approx(n_frames / rate)
    assert float(row["rtf"]) > 0


@pytest.mark.parametrize("twice", [0, 1])
@pytest.mark.parametrize("kind", BAD)
def test_bad_files_have_their_line_and_the_rest_continue(tmp_path, command, kind, twice):
    (tmp_path / "in").mkdir()
    write_bad(tmp_path / "in/bad.wav", kind)
    for name in ("a.wav", "z.wav"):
        files.save(tmp_path / "in" / name, noise(), 16000)
    lines, out = [], tmp_path / "out"
    command.run(command.kinds[twice](), tmp_path / "in", output=out, tell=lines.append)
    assert [row["status"] for row in command.rows(out)] == ["ok", "failed", "ok"]
    assert [row["reason"] for row in command.rows(out)] == ["", *lines, ""]
    assert lines[0].startswith(f"{tmp_path / 'in/bad.wav'}: ") and BAD[kind] in lines[0]
    written = {path for path in out.rglob("*") if path.is_file()}
    expected = {path for name in ("a.wav", "z.wav") for path in command.outputs(out, name)}
    assert written == expected | {out / command.log}


def test_an_unreadable_file(tmp_path, command, model, monkeypatch):
    source = tmp_path / "in.wav"
    files.save(source, noise(), 16000)
    opened = Path.open

    def refuse(path, *arguments, **settings):  # root reads all files: refuse this one for it too
        if path == source:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **settings)

    monkeypatch.setattr(Path, "open", refuse)
    [result] = command.run(model, source, output=tmp_path / "out")
    assert result.status == "failed"
    assert result.reason.startswith(f"{source}: not readable as sound (Permission denied)")


def test_an_unreadable_subfolder_has_its_line_and_the_rest_continue(
    tmp_path, command, model, monkeypatch
):
    """Once it is readable, its files are made and its line is gone."""
    names = "a.wav", "sub/b.wav", "sub/c.wav"
    for name in names:
        files.save(tmp_path / "in" / name, noise(), 16000)
    scandir, lines, out = os.scandir, [], tmp_path / "out"

    def refusing(path="."):
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refusing)
        results = command.run(model, tmp_path / "in", output=out, tell=lines.append)
    assert sorted(result.status for result in results) == ["failed", "ok"]
    [line] = lines
    assert line.startswith(f"{tmp_path / 'in/sub'}: cannot be read (Permission denied); ")
    assert sorted(row["reason"] for row in command.rows(out)) == ["", line]
    results = command.run(model, tmp_path / "in", output=out)
    assert sorted(result.status for result in results) == ["ok", "ok", "skipped"]
    left = sorted(row["output"] for row in command.rows(out))
    assert left == [Path(command.parts[0], name).as_posix() for name in names]


def test_a_failing_model_is_the_reason_of_its_file(tmp_path, command, model, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("too\nlong")

    files.save(tmp_path / "in.wav", noise(), 16000)
    monkeypatch.setattr(type(model), command.step, fail)
    [result] = command.run(model, tmp_path / "in.wav", output=tmp_path / "out")
    assert result.reason.endswith("the model failed: RuntimeError: too long")
    assert not list((tmp_path / "out").rglob("*.wav*"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_estimate_that_is_not_finite_is_the_reason_of_its_file(
    tmp_path, command, model, value, monkeypatch
):
    step = getattr(model, command.step)

    def broken(*given, **settings):
        made = step(*given, **settings)
        return (made[0] + value, made[1]) if isinstance(made, tuple) else made + value

    files.save(tmp_path / "in.wav", noise(), 16000)
    monkeypatch.setattr(model, command.step, broken)
    [result] = command.run(model, tmp_path / "in.wav", output=tmp_path / "out")
    said = "the model gave NaN or infinite samples; choose another checkpoint"
    assert result.reason == f"{tmp_path / 'in.wav'}: {said}"
    assert not list((tmp_path / "out").rglob("*.wav*"))


def test_memory_is_that_of_a_short_recording(tmp_path, command):
    """Forty minutes add no more than two, within a third of the recording in float32.

    The least of up to three runs counts: the allocator may take more than a run needs, never less.
    """
    settings = {"output": tmp_path / "out", "chunk_s": 8.0, "overwrite": True}
    short, long = (tmp_path / f"{minutes}.wav" for minutes in (2, 40))
    for path, minutes in ((short, 2), (long, 40)):
        with files.Writer(path, 2 * RATE, 1, "PCM_U8") as writer:
            for i in range(minutes):
                writer.write(noise(1, 120 * RATE, seed=i))
    command.run(command.low(), short, **settings)  # loads code
    least = added_memory(lambda: command.run(command.low(), short, **settings))
    allowed = least + 4 * 4800 * RATE / 3
    added = (added_memory(lambda: command.run(command.low(), long, **settings)) for _ in range(3))
    assert not all(bytes_added > allowed for bytes_added in added)
    assert soundfile.info(command.outputs(tmp_path / "out", "40.wav")[-1]).frames == 4800 * RATE


# Skipping, overwriting, other settings


def test_existing_outputs_are_skipped(tmp_path, command, model):
    """A job is done when all its outputs exist; the numbers of its row stay."""
    for name in ("a.wav", "b.wav", "sub/c.wav"):
        files.save(tmp_path / "in" / name, noise(), 16000)
    out = tmp_path / "out"
    first = command.run(model, tmp_path / "in", output=out)
    command.outputs(out, "b.wav")[-1].unlink()
    before = command.outputs(out)[0].stat().st_mtime_ns
    second = command.run(model, tmp_path / "in", output=out)
    assert [result.status for result in first] == ["ok"] * 3
    assert [result.status for result in second] == ["skipped", "ok", "skipped"]
    assert second[0].seconds == first[0].seconds
    assert command.outputs(out)[0].stat().st_mtime_ns == before
    assert command.outputs(out, "b.wav")[-1].is_file()
    assert [row["status"] for row in command.rows(out)] == ["skipped", "ok", "skipped"]


def test_files_of_other_settings_are_neither_skipped_nor_lost(tmp_path, command, model):
    files.save(tmp_path / "a.wav", noise(), 16000)
    out = tmp_path / "out"
    command.run(model, tmp_path / "a.wav", output=out)
    before = contents(command.outputs(out))
    level = {command.level: "published"}
    for other, settings in ((model, command.other), (model, level), (command.model(1), {})):
        with pytest.raises(UserError, match="another model or other settings; use --overwrite"):
            command.run(other, tmp_path / "a.wav", output=out, **settings)
    assert contents(command.outputs(out)) == before
    [result] = command.run(model, tmp_path / "a.wav", output=out, overwrite=True, **command.other)
    assert result.status == "ok" and contents(command.outputs(out)) != before


def test_wrong_settings_are_errors_before_any_work(tmp_path, command, model):
    files.save(tmp_path / "a.wav", noise(), 16000)
    common = {"no subtype 'X'": {"subtype": "X"}, r"no level .*'loud'": {command.level: "loud"}}
    for said, settings in (command.wrong | common).items():
        with pytest.raises(UserError, match=said):
            command.run(model, tmp_path / "a.wav", output=tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_an_output_that_failed_to_be_replaced_is_made_again(tmp_path, command, model):
    """It is the first model's; the second model does not skip it as its own."""
    source, out, second = tmp_path / "a.wav", tmp_path / "out", command.model(1)
    files.save(source, noise(), 16000)
    whole = source.read_bytes()
    command.run(model, source, output=out)
    firsts = contents(command.outputs(out))
    source.write_bytes(whole[:2000])
    [failed] = command.run(second, source, output=out, overwrite=True)
    source.write_bytes(whole)
    [again] = command.run(second, source, output=out)
    assert (failed.status, again.status) == ("failed", "ok")
    assert contents(command.outputs(out)) != firsts
    assert command.run(second, source, output=out)[0].status == "skipped"


def test_one_run_at_a_time(tmp_path, command, model):
    pytest.importorskip("fcntl")
    files.save(tmp_path / "a.wav", noise(), 16000)
    with batch.alone(tmp_path / "out"), pytest.raises(UserError, match="another run writes there"):
        command.run(model, tmp_path / "a.wav", output=tmp_path / "out")


# Killed and resumed


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_the_middle_of_a_file():
    write, blocks = files.Writer.write, []

    def writes(writer, samples):
        write(writer, samples)
        blocks.append(samples)
        if "1.wav" in str(writer.path) and samples.shape[-1]:
            die()

    files.Writer.write = writes


def die_when_an_output_has_its_name():
    replace = os.replace

    def replaces(old, new):
        replace(old, new)
        if Path(new).name == "1.wav":
            die()

    os.replace = replaces


def die_before_the_row():
    add = batch.Log.add

    def adds(log, result):
        if (result.status, Path(result.output).name) == ("ok", "1.wav"):
            die()
        return add(log, result)

    batch.Log.add = adds


@pytest.mark.parametrize(
    "patch", [die_in_the_middle_of_a_file, die_when_an_output_has_its_name, die_before_the_row]
)
def test_killed_and_resumed_it_gives_the_same_bytes(tmp_path, command, model, patch):
    """SIGKILL in the second file: an output exists complete or not at all.

    An output without its row has known settings and is made again.
    """
    for i in range(3):
        files.save(tmp_path / f"in/{i}.wav", noise(1, 20000, seed=i), 16000, "FLOAT")
    out = tmp_path / "killed"

    def work():
        patch()
        command.run(model, tmp_path / "in", output=out)

    assert ended(forked(work)) == -signal.SIGKILL
    command.run(model, tmp_path / "in", output=tmp_path / "whole")
    wholes = [command.outputs(tmp_path / "whole", f"{i}.wav") for i in range(3)]
    named = [command.outputs(out, f"{i}.wav") for i in range(3)]
    n_named = {die_in_the_middle_of_a_file: 0, die_when_an_output_has_its_name: 1}
    n_found = [sum(path.exists() for path in paths) for paths in named]
    n_parts = len(command.parts)
    assert n_found == [n_parts, n_named.get(patch, n_parts), 0]
    pairs = zip(*(itertools.chain(*paths) for paths in (named, wholes)), strict=True)
    assert all(path.read_bytes() == whole.read_bytes() for path, whole in pairs if path.exists())
    if patch is not die_in_the_middle_of_a_file:
        assert [row["status"] for row in command.rows(out)][1:] == ["ok", "started"]
        with pytest.raises(UserError, match="was made with another model"):
            command.run(command.model(1), tmp_path / "in/1.wav", output=out)
    command.run(model, tmp_path / "in", output=out)
    assert [row["status"] for row in command.rows(out)] == ["skipped", "ok", "ok"]
    assert list(map(contents, named)) == list(map(contents, wholes))
    assert not list(out.rglob("*.part"))


def test_killed_before_an_output_was_replaced(tmp_path, command, model, monkeypatch):
    """The file is the first model's, the started row the second's: it is made again."""
    source, out, second = tmp_path / "a.wav", tmp_path / "out", command.model(1)
    files.save(source, noise(), 16000)
    command.run(model, source, output=out)
    firsts = contents(command.outputs(out))

    class Killed(BaseException):
        pass

    def start(log, job, made_with, write=batch.Log.start):
        write(log, job, made_with)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(batch.Log, "start", start)
        with pytest.raises(Killed):
            command.run(second, source, output=out, overwrite=True)
    assert contents(command.outputs(out)) == firsts
    [again] = command.run(second, source, output=out)
    assert again.status == "ok" and contents(command.outputs(out)) != firsts
