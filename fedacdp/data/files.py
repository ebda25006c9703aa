"""Files of data sets: checked before every use, fetched only when asked to.

Nothing here is trusted but the pinned checksums: a file is used only if its bytes have the checksum in the source of
its data set, wherever it came from.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import secrets
import tarfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPMessage
from pathlib import Path, PurePosixPath
from typing import IO

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 60
_verified: set[tuple[object, ...]] = set()


@dataclass(frozen=True)
class Pin:
    """One published file: the places below the data folder where it may lie (`fetch` writes to the first), the largest
    number of bytes it may have, and its checksum in hexadecimal."""

    places: tuple[str, ...]
    limit: int
    digest: str
    algorithm: str = "sha256"

    def digest_of(self, data: bytes) -> str:
        """The checksum of `data` by this pin's algorithm."""
        return hashlib.new(self.algorithm, data, usedforsecurity=False).hexdigest()


def read(folder: Path, pin: Pin, name: str) -> bytes:
    """The bytes of a file of data set `name`, checked against its pin; ValueError in one line if it is missing or not
    that file. Within a process a file that has not changed since is checked once."""
    path = next((folder / place for place in pin.places if (folder / place).is_file()), None)
    if path is None:
        raise _unusable(folder / pin.places[0], pin, "no file", name)
    try:
        status, data = path.stat(), path.read_bytes()
    except OSError as error:
        raise _unusable(path, pin, f"a file that cannot be read ({error.strerror})", name) from None
    mark = (path, status.st_ino, status.st_size, status.st_mtime_ns, pin.digest)
    if mark not in _verified:
        found = pin.digest_of(data)
        if found != pin.digest:
            raise _unusable(path, pin, f"{found} ({len(data):,} bytes)", name)
        _verified.add(mark)
    return data


def present(folder: Path, pin: Pin) -> bool:
    """Whether the file is there and is the pinned one."""
    try:
        read(folder, pin, "")
    except ValueError:
        return False
    return True


def fetch(folder: Path, pins: Sequence[Pin], mirrors: Sequence[str]) -> None:
    """Download files that are not there yet, each from the first mirror (an address that ends before the file's name)
    that has it; ValueError in one line if none has."""
    for pin in pins:
        if present(folder, pin):
            continue
        target, reasons = folder / pin.places[0], []
        for mirror in mirrors:
            try:
                place(target, download(mirror + target.name, pin.limit), pin)
                break
            except (OSError, http.client.HTTPException, ValueError) as error:
                reasons.append(f"{mirror}{target.name}: {error}")
        else:
            raise ValueError(f"{target}: not downloaded: {'; '.join(reasons)}")


def fetch_archive(folder: Path, url: str, limit: int, members: Mapping[str, Pin], digest: str | None = None) -> None:
    """Download a .zip or .tar.gz and put those of its members in place that are not there yet.

    Members are named by their path in the archive; `a.zip/b` is the member b of the archive's member a.zip. Each is
    read by itself, up to its limit, and checked; nothing else is written. `digest` is the SHA-256 of the archive, where
    its publisher keeps it as it is. ValueError in one line if the archive cannot be had or read, if a name in it would
    lead out of a folder, or if a member is missing or not the pinned one.
    """
    wanted = {member: pin for member, pin in members.items() if not present(folder, pin)}
    if not wanted:
        return
    try:
        data = download(url, limit)
        found = hashlib.sha256(data).hexdigest()
        if digest is not None and found != digest:
            raise ValueError(f"sha256 {found} ({len(data):,} bytes), expected {digest}")
        for member, stream in _entries(url, io.BytesIO(data), {f"{url}/{member}" for member in wanted}, limit):
            # An archive may hold two files of one name; both are checked.
            pin = members[member.removeprefix(f"{url}/")]
            place(folder / pin.places[0], _up_to(stream, pin.limit, member), pin)
            wanted.pop(member.removeprefix(f"{url}/"), None)
    except (OSError, EOFError, http.client.HTTPException, ValueError) as error:
        raise ValueError(f"{url}: {error}") from None
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, RuntimeError) as error:
        raise ValueError(f"{url}: not a readable archive: {error}") from None
    if wanted:
        raise ValueError(f"{url}: does not contain {', '.join(wanted)}")


def download(url: str, limit: int) -> bytes:
    """The bytes behind an https address; ValueError if there are more than `limit`, OSError if they cannot be had."""
    if not url.startswith("https://"):
        raise ValueError("not an https address")
    with open_url(url) as stream:
        return _up_to(stream, limit, "the file")


def place(target: Path, data: bytes, pin: Pin) -> None:
    """Write checked bytes under a temporary name beside `target`, then give them its name; ValueError if not pinned."""
    found = pin.digest_of(data)
    if found != pin.digest:
        raise ValueError(f"{target.name}: {pin.algorithm} {found} ({len(data):,} bytes), expected {pin.digest}")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        partial.write_bytes(data)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


class HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only if it stays on https."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if not newurl.startswith("https://"):
            raise OSError(f"redirected to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def open_url(url: str) -> contextlib.AbstractContextManager[IO[bytes]]:
    """An open stream of the bytes behind an address."""
    request = urllib.request.Request(url, headers={"User-Agent": "fedacdp"})
    stream: contextlib.AbstractContextManager[IO[bytes]] = urllib.request.build_opener(HttpsOnly).open(
        request, timeout=_TIMEOUT_SECONDS
    )
    return stream


def _unusable(path: Path, pin: Pin, found: str, name: str) -> ValueError:
    return ValueError(
        f"{path}: expected {pin.algorithm} {pin.digest}, found {found}; "
        f"run `fedacdp data fetch {name}`, or name the folder that has it with --data-dir"
    )


def _up_to(stream: IO[bytes], limit: int, what: str) -> bytes:
    """All bytes of a stream; ValueError as soon as there are more than `limit`."""
    parts, size = [], 0
    while chunk := stream.read(_CHUNK):
        size += len(chunk)
        if size > limit:
            raise ValueError(f"{what} is larger than {limit:,} bytes")
        parts.append(chunk)
    return b"".join(parts)


def _entries(name: str, file: IO[bytes], wanted: set[str], limit: int) -> Iterator[tuple[str, IO[bytes]]]:
    """The files of an archive, and of zips in it, whose paths below `name` are wanted, as (path, stream); ValueError
    for any path that leads out of a folder."""
    if name.endswith(".zip"):
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                path = f"{name}/{_inside(entry.filename)}"
                if path in wanted:
                    with archive.open(entry) as stream:
                        yield path, stream
                elif path.endswith(".zip") and any(member.startswith(f"{path}/") for member in wanted):
                    with archive.open(entry) as stream:
                        inner = io.BytesIO(_up_to(stream, limit, path))
                    yield from _entries(path, inner, wanted, limit)
    else:
        with tarfile.open(fileobj=file, mode="r:gz") as tape:
            for record in tape:
                path = f"{name}/{_inside(record.name)}"
                content = tape.extractfile(record) if record.isfile() and path in wanted else None
                if content is not None:
                    yield path, content


def _inside(path: str) -> str:
    if "\\" in path or ":" in path or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError(f"refused: the archive holds a file named {path!r}")
    return path
