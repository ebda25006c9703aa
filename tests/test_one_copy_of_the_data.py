"""The processes of a machine map one copy of a data set, which nobody can change and which is gone afterwards."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest

from fedacdp.config import Execution
from fedacdp.data import shared
from fedacdp.data.base import Source
from fedacdp.rounds import compute_here, evaluate, first_state
from fedacdp.setting import prepare
from fedacdp.tasks import pack_task, perform, read_partials
from fedacdp.users import Column, Examples, Schema
from tests.conftest import experiment

MEGABYTES = 40


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder for temporary files that nobody else uses."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield tmp_path
    for place in [place for place in shared._locks if tmp_path in place.parents]:
        os.close(shared._locks.pop(place))


def source(megabytes: float = MEGABYTES) -> Source:
    columns = (Column("age", 0, mean=0.1, std=1 / 3), Column("city", 1, levels=("Ur", "Bath")))
    schema = Schema((3,), ("no", "yes"), columns, low=-1.0, high=2.0)
    rng = np.random.default_rng(0)
    n = int(megabytes * 2**20 / 12)
    train = Examples(rng.random((n, 3), np.float32), rng.integers(0, 2, n), schema)
    test = Examples(rng.random((50, 3), np.float32), rng.integers(0, 2, 50), schema)
    return Source(train, test, {"city": np.array(["Ur", "Bath"])[rng.integers(0, 2, n)]})


def never() -> Source:
    raise AssertionError("it is there already")


def shares(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("fedacdp-data-*"))


def test_what_is_mapped_is_what_was_made(folder):
    made = source()
    for found in (
        shared.from_share("fedacdp-data-a", "s", lambda: made),
        shared.from_share("fedacdp-data-a", "s", never),
    ):
        for part in ("train", "test"):
            mine, theirs = getattr(made, part), getattr(found, part)
            np.testing.assert_array_equal(theirs.x, mine.x)
            np.testing.assert_array_equal(theirs.y, mine.y)
            assert (theirs.x.dtype, theirs.y.dtype) == (np.float32, np.int64)
            assert theirs.schema == mine.schema
            assert theirs.digest == mine.digest
            with pytest.raises(ValueError, match="read-only"):
                theirs.x[0] = 1
        assert list(found.groups) == ["city"]
        np.testing.assert_array_equal(found.groups["city"], made.groups["city"])


READER = """
import json, sys
from pathlib import Path
from fedacdp.data import shared

def never():
    raise AssertionError("it is there already")

def own():
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1])

before = own()
x = shared.from_share(sys.argv[1], "s", never).train.x
total, after = float(x.sum()), own()
[inode] = {line.split()[4] for line in open("/proc/self/maps") if line.endswith("train_x.npy\\n")}
print(json.dumps({"total": total, "inode": int(inode), "own": after - before}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts memory as Linux does")
def test_two_processes_map_the_same_pages(folder):
    made = shared.from_share("fedacdp-data-b", "s", source)
    command = [sys.executable, "-c", READER, "fedacdp-data-b"]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    inode = (folder / "fedacdp-data-b" / "s" / "train_x.npy").stat().st_ino
    for reader in readers:
        found = json.loads(reader.communicate(timeout=120)[0])
        assert found["total"] == float(made.train.x.sum())
        assert found["inode"] == inode
        # Not Private_Dirty, which counts a page that one process maps and that is not on disk yet, whosever it is.
        assert found["own"] < MEGABYTES * 1024 / 10, "kB of memory that only this process has"


def test_of_those_who_write_at_once_one_wins_and_all_read_the_same(folder):
    def slow() -> Source:
        shared.from_share("fedacdp-data-c", "s", source)  # somebody else is faster
        return source()

    found = shared.from_share("fedacdp-data-c", "s", slow)
    np.testing.assert_array_equal(found.train.x, source().train.x)
    assert sorted(path.name for path in (folder / "fedacdp-data-c").iterdir()) == ["lock", "s"]


def test_a_small_data_set_leaves_no_files(folder):
    found = shared.from_share("fedacdp-data-d", "s", lambda: source(1))
    assert found.train.x.flags.writeable
    assert list(folder.iterdir()) == []


def test_without_room_on_disk_a_process_has_its_own_copy_and_says_so(folder, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.warns(UserWarning, match="No space left on device; this process keeps a copy of the data to itself"):
        found = shared.from_share("fedacdp-data-e", "s", source)
    np.testing.assert_array_equal(found.train.x, source().train.x)
    assert [path.name for path in (folder / "fedacdp-data-e").iterdir()] == ["lock"]


def test_a_share_is_removed_with_its_process_or_when_the_next_is_written(folder):
    code = (
        "import sys\n"
        "import numpy as np\n"
        "from fedacdp.data import shared\n"
        "from fedacdp.data.base import Source\n"
        "from fedacdp.users import Examples, Schema\n"
        "some = Examples(np.zeros((2**22, 1), np.float32), np.zeros(2**22, np.int64), Schema((1,), ('a', 'b')))\n"
        "shared.from_share(shared.own_share(), 's', lambda: Source(some, some))\n"
        "print('there', flush=True)\n"
        "sys.stdin.read()\n"
    )

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True)
        assert process.stdout
        assert process.stdout.readline() == "there\n"
        return process

    ended = start()
    assert len(shares(folder)) == 1
    ended.communicate(timeout=60)
    assert shares(folder) == []
    killed, alive = start(), start()
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    assert len(shares(folder)) == 2
    shared.from_share("fedacdp-data-f", "s", source)
    assert len(shares(folder)) == 2, "that of the killed process is gone, that of the living is not"
    alive.communicate(timeout=60)
    assert shares(folder) == ["fedacdp-data-f"]


def test_a_share_of_somebody_else_is_not_used(folder, monkeypatch):
    shared.from_share("fedacdp-data-g", "s", source)
    os.close(shared._locks.pop(folder / "fedacdp-data-g"))
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    with pytest.warns(UserWarning, match="belongs to somebody else"):
        assert shared.from_share("fedacdp-data-g", "s", lambda: source(20)).train.x.flags.writeable


def test_a_node_does_its_work_on_mapped_records_and_gets_the_same_bits(folder, monkeypatch):
    monkeypatch.setattr(shared, "WORTH", 0)
    chunks = [np.arange(0, 16), np.arange(16, 60)]
    local, flower = (Execution(engine=engine, data_dir=folder) for engine in ("local", "flower"))
    chosen = experiment(seed=4711)
    setting = prepare(chosen, local)
    start = first_state(setting).parameters
    task = pack_task(setting, flower, start, 1, chunks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        there = read_partials(perform(task), 2)
        mapped = shared.load(chosen.data, folder, shared.own_share())
        node = prepare(chosen.with_privacy(setting.mechanism), flower)
        assert not mapped.train.x.flags.writeable
        assert evaluate(node, start) == evaluate(setting, start)
    for mine, theirs in zip(compute_here(setting, start, 1, chunks), there, strict=True):
        np.testing.assert_array_equal(mine.total, theirs.total)
        np.testing.assert_array_equal(mine.norms, theirs.norms)
