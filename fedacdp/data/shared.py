"""One copy of a data set for all processes of a machine: arrays in files, which every process maps read-only.

The processes that work for one run know the name of its share, a folder among the machine's temporary files. Who comes
first writes a data set there; a rename makes it appear whole or not at all. The process that named the share removes
it at its end. A share that outlives its processes (killed, or on another machine of a cluster) is known by a lock that
nobody holds any more, and goes when the next one is written.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fedacdp.data.base import DataSet, Owners, Source
from fedacdp.users import Column, Examples, Schema

WORTH = 2**24  # bytes of records from which on files are better than a copy in every process
_PREFIX = "fedacdp-data-"
_locks: dict[Path, int] = {}  # of the shares that this process uses, held until it ends


@cache
def own_share() -> str:
    """The name of the share of this process and of those who work for it."""
    name = _PREFIX + secrets.token_hex(8)
    atexit.register(shutil.rmtree, _folder(name), ignore_errors=True)
    return name


def load(data: DataSet, folder: Path, share: str | None = None) -> Source:
    """The records of a data set, read once per process however they are cut, and once per machine with a `share`."""
    return _loaded(data.uncut, folder.expanduser().absolute(), share)


@lru_cache(maxsize=8)
def _loaded(data: DataSet, folder: Path, share: str | None) -> Source:
    def make() -> Source:
        return data.load(folder)

    if share is None:
        return make()
    slot = hashlib.sha256(f"{folder}\n{data.model_dump_json()}".encode()).hexdigest()[:16]
    return from_share(share, slot, make)


def from_share(share: str, slot: str, make: Callable[[], Source]) -> Source:
    """What `make` gives, in arrays that are those of all processes that ask for this slot (a file name) of the share.

    A small data set is simply made. Where files cannot be written, this process has a copy to itself, and a warning
    says so.
    """
    place = _folder(share) / slot
    source = None if place.is_dir() else make()
    if source is not None and source.train.x.nbytes + source.test.x.nbytes < WORTH:
        return source
    try:
        _join(place.parent)
        if source is not None:
            _sweep()
            _write(place, source)
        return _read(place)
    except OSError as error:
        reason = error.strerror or str(error)
        warnings.warn(f"{place}: {reason}; this process keeps a copy of the data to itself", stacklevel=2)
        return make() if source is None else source


def _folder(share: str) -> Path:
    return Path(tempfile.gettempdir()) / share


def _write(place: Path, source: Source) -> None:
    """Write under a temporary name and rename, unless somebody else was faster. OSError where there is no room."""
    arrays = {"train_x": source.train.x, "train_y": source.train.y, "test_x": source.test.x, "test_y": source.test.y}
    arrays |= {f"group_{number}": cells for number, cells in enumerate(source.groups.values())}
    about: dict[str, Any] = {"schema": dataclasses.asdict(source.train.schema), "groups": list(source.groups)}
    if source.owners is not None:
        arrays |= {"train_owner": source.owners.train, "test_owner": source.owners.test}
        arrays |= {f"people_{number}": cells for number, cells in enumerate(source.owners.groups.values())}
        about |= {"people": list(source.owners.groups), "owners": source.owners.count}
    draft = Path(tempfile.mkdtemp(prefix=f"{place.name}.", dir=place.parent))
    try:
        for name, array in arrays.items():
            np.save(draft / f"{name}.npy", array, allow_pickle=False)
        (draft / "about.json").write_text(json.dumps(about))
        with contextlib.suppress(OSError):  # a folder with files in it is never replaced: somebody was faster
            draft.rename(place)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _read(place: Path) -> Source:
    """Map what was written. Nothing is unpickled, and no page is in memory twice."""

    def array(name: str) -> np.ndarray:
        return np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False).view(np.ndarray)

    about = json.loads((place / "about.json").read_text())
    raw = about["schema"]
    columns = tuple(Column(**column | {"levels": tuple(column["levels"])}) for column in raw["columns"])
    schema = Schema(**raw | {"shape": tuple(raw["shape"]), "classes": tuple(raw["classes"]), "columns": columns})
    train, test = (Examples(array(f"{part}_x"), array(f"{part}_y"), schema) for part in ("train", "test"))
    groups = {name: array(f"group_{number}") for number, name in enumerate(about["groups"])}
    if "owners" not in about:
        return Source(train, test, groups)
    people = {name: array(f"people_{number}") for number, name in enumerate(about["people"])}
    return Source(train, test, groups, Owners(about["owners"], array("train_owner"), array("test_owner"), people))


def _join(folder: Path) -> None:
    """Make the folder if it is not there, and hold its lock until this process ends. OSError if it is not ours."""
    while folder not in _locks:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to somebody else")
        try:
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            continue  # swept away in between
        fcntl.flock(lock, fcntl.LOCK_SH)
        try:
            if os.path.samestat(os.fstat(lock), (folder / "lock").stat()):
                _locks[folder] = lock
                return
        except FileNotFoundError:
            pass
        os.close(lock)


def _sweep() -> None:
    """Remove the shares whose processes have all ended."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if folder in _locks:
            continue
        with contextlib.suppress(OSError):
            lock = os.open(folder / "lock", os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
