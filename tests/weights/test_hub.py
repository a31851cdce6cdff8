"""A download gives the published bytes or an error, whatever the server does."""

import dataclasses
import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

from speechlab.errors import UserError
from speechlab.storage import download
from speechlab.weights import hub, own
from tests.support.bad_server import CONTENT, serving
from tests.support.warm import ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def row(path: str, content: bytes = CONTENT, system: str = "toy") -> hub.PublishedFile:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return hub.PublishedFile(system, "owner/toy", COMMIT, path, blob)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A loopback server in place of the authors' repositories, an empty cache, no waiting."""
    monkeypatch.setattr(download, "BACK_OFF_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(download, "TIMEOUT_S", 5.0)
    monkeypatch.setattr(hub, "_rows", lambda: (row("runs/model.pkl"), row("other/best", b"other")))
    monkeypatch.setattr(own, "files", lambda: ())
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SPEECHLAB_WEIGHTS", raising=False)
    with serving() as server:
        monkeypatch.setattr(hub, "BASE_URL", server.address)
        yield server


def part_file() -> Path:
    return hub.cache_folder() / "owner/toy" / COMMIT / "runs/model.pkl.part"


N, HALF = len(CONTENT), CONTENT[:600_000]


def test_download_is_the_published_file_and_is_fetched_once(server):
    path = hub.download("model", progress=False)
    assert path.read_bytes() == CONTENT
    assert path == hub.find("model") == hub.download("model", progress=False)
    assert server.paths == [f"/owner/toy/{COMMIT}/runs/model.pkl"]
    assert not part_file().exists()


@pytest.mark.parametrize(
    ("part", "behaviour", "ranges"),
    [
        (b"", "cut cut plain", [None, f"bytes={N // 3}-", f"bytes={N // 3 + (N - N // 3) // 3}-"]),
        (HALF, "plain", ["bytes=600000-"]),
        (CONTENT, "plain", [f"bytes={N}-"]),  # only verified
        (b"x" * 600_000, "plain", ["bytes=600000-", None]),
        (CONTENT + b"more", "plain", [f"bytes={N + 4}-", None]),
        (b"x" * 600_000, "whole", ["bytes=600000-"]),  # ignores Range
        (b"x" * 600_000, "nameless", ["bytes=600000-"]),
        (HALF, "elsewhere plain", ["bytes=600000-"] * 2),  # sends another part than asked for
        (b"", "stall plain", [None, "bytes=1000-"]),
        (b"", "busy busy plain", [None] * 3),
        (b"", "silent silent plain", [None] * 3),
    ],
)
def test_a_broken_download_is_completed(server, monkeypatch, part, behaviour, ranges):
    """part: what an earlier call has left. A restart asks for no range."""
    monkeypatch.setattr(download, "TIMEOUT_S", 2.0)  # a stalled answer ends, the next is in time
    if part:
        part_file().parent.mkdir(parents=True)
        part_file().write_bytes(part)
    server.behaviour = behaviour.split()
    assert hub.download("model", progress=False).read_bytes() == CONTENT
    assert server.ranges == ranges


@pytest.mark.parametrize(
    ("behaviour", "said", "n_requests", "left"),
    [
        ("lie", "other content than the published model", 1, b""),
        ("missing", r"HTTP 404.*put model\.pkl into a folder.*SPEECHLAB_WEIGHTS", 1, b""),
        ("busy", r"cannot be fetched: .*SPEECHLAB_WEIGHTS", 4, b""),
        ("silent", r"cannot be fetched: .*SPEECHLAB_WEIGHTS", 4, b""),
        ("cut busy", "HTTP 503", 4, CONTENT[: N // 3]),
    ],
)
def test_a_failed_download_is_one_line(server, behaviour, said, n_requests, left):
    """A correct part stays for the next call; wrong content leaves nothing."""
    server.behaviour = behaviour.split()
    with pytest.raises(UserError, match=said) as caught:
        hub.download("model", progress=False)
    assert "\n" not in str(caught.value)
    assert len(server.ranges) == n_requests
    part = part_file()
    assert (part.read_bytes() if part.exists() else b"") == left
    assert hub.find("model") is None


def test_a_small_published_file_is_fetched_on_first_use(server, monkeypatch, caplog, tmp_path):
    """Named and verified; --offline, a large file and one of unknown size are only named."""
    small = dataclasses.replace(row("runs/model.pkl"), n_bytes=str(N))
    large = dataclasses.replace(row("other/best"), n_bytes="8000001")
    monkeypatch.setattr(hub, "_rows", lambda: (small, large, row("other/unknown.pkl")))
    with pytest.raises(UserError, match="model: not downloaded; run `speechlab weights download"):
        hub.locate("model")  # the tests set OFFLINE
    monkeypatch.delenv(hub.OFFLINE)
    for name in ("best", "unknown"):
        with pytest.raises(UserError, match=f"{name}: not downloaded; run `speechlab weights"):
            hub.locate(name)
    assert not server.paths
    server.behaviour = ["busy"]
    with pytest.raises(UserError, match="HTTP 503"):
        hub.locate("model")  # one more attempt, not as many as of a download that was asked for
    assert len(server.paths) == 2
    server.behaviour, server.paths[:] = ["plain"], []
    assert hub.locate("model").read_bytes() == CONTENT and len(server.paths) == 1
    assert "model: fetching 1.0 MB from github.com/owner/toy" in caplog.text
    assert hub.locate("model") and len(server.paths) == 1
    caplog.clear()
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("SPEECHLAB_WEIGHTS", str(empty))
    hub.find("model").unlink()
    with pytest.raises(UserError, match=r"model is not in .*empty"):
        hub.locate("model")
    assert not caplog.text


def test_commands_that_start_together_fetch_once(server):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(hub.download, ["model"] * 4, [False] * 4))
    assert set(found) == {hub.find("model")} and len(server.paths) == 1
    assert [path.name for path in found[0].parent.iterdir()] == ["model.pkl"]


def test_no_network_is_one_line_that_says_what_to_do(server, monkeypatch):
    monkeypatch.setattr(hub, "BASE_URL", "http://127.0.0.1:9")  # discard: no server
    with pytest.raises(UserError, match=r"no connection.*SPEECHLAB_WEIGHTS") as caught:
        hub.download("model", progress=False)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_a_full_disk_is_named(server):
    part_file().parent.mkdir(parents=True)
    part_file().symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"model\.pkl\.part cannot be written: the disk is full"):
        hub.download("model", progress=False)
    assert len(server.ranges) == 1


def test_a_cache_that_is_no_folder_is_named(server, tmp_path):
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot be written.*; set XDG_CACHE_HOME to another disk"):
        hub.download("model", progress=False)


def test_offline_never_touches_the_network(server, monkeypatch, tmp_path):
    monkeypatch.setenv("SPEECHLAB_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=r"model is not in .*SPEECHLAB_WEIGHTS.*model\.pkl"):
        hub.download("model", progress=False)
    deep = tmp_path / "any" / "depth"
    deep.mkdir(parents=True)
    (deep / "model.pkl").write_bytes(CONTENT)
    assert hub.download("model", progress=False) == deep / "model.pkl"
    assert server.ranges == []


def test_offline_folder_comes_before_the_cache(server, monkeypatch, tmp_path):
    cached = hub.download("model", progress=False)
    monkeypatch.setenv("SPEECHLAB_WEIGHTS", str(tmp_path))
    assert hub.find("model") == cached
    other = tmp_path / "offline"
    other.mkdir()
    (other / "model.pkl").write_bytes(CONTENT)
    monkeypatch.setenv("SPEECHLAB_WEIGHTS", str(other))
    assert hub.find("model") == other / "model.pkl"


def test_a_wrong_file_of_the_right_name_is_named(server, monkeypatch, tmp_path):
    monkeypatch.setenv("SPEECHLAB_WEIGHTS", str(tmp_path))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "model.pkl").write_bytes(CONTENT[:-1])
    for call in (hub.find, hub.download):
        with pytest.raises(UserError, match=r"a.model\.pkl is not the published model"):
            call("model")
    assert hub.table()[0]["where"].startswith("unusable: ")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "model.pkl").write_bytes(CONTENT)
    assert hub.find("model") == tmp_path / "b" / "model.pkl"


def test_a_missing_offline_folder_is_named(server, monkeypatch, tmp_path):
    monkeypatch.setenv("SPEECHLAB_WEIGHTS", str(tmp_path / "nowhere"))
    for call in (hub.table, lambda: hub.find("model")):
        with pytest.raises(UserError, match=r"SPEECHLAB_WEIGHTS names .*nowhere"):
            call()


def test_cache_folder_follows_the_platform(monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/someone"))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    for platform, folder in {
        "linux": "/home/someone/.cache",
        "darwin": "/home/someone/Library/Caches",
        "win32": "/local",
    }.items():
        monkeypatch.setattr(sys, "platform", platform)
        assert hub.cache_folder() == Path(folder, "speechlab", "weights")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert hub.cache_folder() == Path("/elsewhere/speechlab/weights")


def test_names_are_unique_and_addresses_whole():
    rows = hub.published()
    assert len({r.name.lower() for r in rows}) == len(rows) > 20
    for r in rows:
        assert hub.lookup(r.name) is hub.lookup(r.path) is hub.lookup(f"{r.system}/{r.name}") is r
        assert r.url.startswith(f"https://raw.githubusercontent.com/{r.repository}/{r.commit}/")
    twins = [hub.lookup("best_model"), hub.lookup("large_model/g_00157500")]  # the same content
    assert twins[0] != twins[1] and twins[0].git_blob_sha1 == twins[1].git_blob_sha1


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("experiment_cleanu_mamba", "Experiment_CleanU_Mamba"),
        ("Experiment_CleanU_Mamba.pkl", "Experiment_CleanU_Mamba"),
        ("experiments/Experiment_CleanU_Mamba2.pkl", "Experiment_CleanU_Mamba2"),
        ("E8_pruned-500k", "CleanUMamba-3N-E8_pruned-500K"),
        ("VD", "vd"),
    ],
)
def test_lookup_accepts_any_case_and_unique_ends(name, found):
    assert hub.lookup(name).name == found


def test_unknown_and_ambiguous_names_are_refused():
    choice = "cleanumamba/CleanUMamba-3N-E6_pruned-500k, cleanumamba/CleanU"
    with pytest.raises(UserError, match=choice):
        hub.lookup("pruned-500K")
    for name in ("nothing", "", "/"):
        with pytest.raises(UserError, match="speechlab weights list"):
            hub.lookup(name)
    with pytest.raises(UserError, match=r"no published weights of '.*'; there are: cleanumamba, "):
        hub.published("nothing")
    assert {r.system for r in hub.published("mpsenet")} == {"mpsenet"}


def test_real_files_have_their_published_ids(shared, monkeypatch, tmp_path):
    monkeypatch.setenv("SPEECHLAB_WEIGHTS", str(shared / "upstream_checkpoints"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    table = pd.DataFrame(hub.table())
    columns = ["name", "system", "MB", "n_params", "pesq_wb", "use", "where"]
    assert list(table.columns) == columns
    for name, size in {row.name: row.n_bytes for row in hub.published() if row.n_bytes}.items():
        assert hub.find(name).stat().st_size == int(size)
    assert not table["where"].str.startswith("unusable").any()
    present = table[table["where"] != ""]
    assert (present["system"] == "cleanumamba").sum() == 10 + len(own.files())
    assert hub.find("Experiment_CleanU_Mamba").stat().st_size == 917_588


def test_numbers_are_those_of_the_committed_tables():
    """And the recommendations follow from them."""
    kinds = ("ablation", "pruning")
    paths = [ROOT / f"results/tables/cleanumamba_{kind}_dns2020_no_reverb.csv" for kind in kinds]
    known = pd.concat(map(pd.read_csv, paths)).dropna(subset=["n_params"]).set_index("checkpoint")
    table = pd.DataFrame(hub.table()).set_index("name").dropna(subset=["n_params"])
    table = table.drop([file.name for file in own.files()])  # test_own.py
    assert set(table.index) == set(known.index)
    for column in ("n_params", "pesq_wb"):
        assert (table[column] == known[column].reindex(table.index)).all()
    assert "best PESQ" in table["use"][table["pesq_wb"].astype(float).idxmax()]
    assert table["use"][table["n_params"].astype(int).idxmin()] == "smallest"
    assert len(hub.sources()) == 4
