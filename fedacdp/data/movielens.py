"""MovieLens: ratings of films, in the files that GroupLens gives out."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from fedacdp.data.base import Source
from fedacdp.data.ratings import AGES, RatingData, Table, source, twice

PAGE = "https://grouplens.org/datasets/movielens/"
_GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
_WHOLE = tuple("12345")
_HALVES = tuple(f"{half / 2:g}" for half in range(1, 11))


class Form(NamedTuple):
    """How the files of a release are written: ratings, films and, where there is a file of them, people."""

    ratings: str
    films: str
    people: str | None
    separator: str
    scale: tuple[str, ...]
    encoding: str = "latin-1"


_OLD = Form("u.data", "u.item", "u.user", "\t", _WHOLE)
_DAT = Form("ratings.dat", "movies.dat", "users.dat", "::", _WHOLE)
_CSV = Form("ratings.csv", "movies.csv", None, ",", _HALVES, "utf-8")
FORMS = {"100k": _OLD, "1m": _DAT} | dict.fromkeys(("latest-small", "latest", "20m", "25m", "32m"), _CSV)
_COLUMNS = {"user": np.int64, "item": np.int64, "rating": np.float64, "time": np.int64}


class Movielens(RatingData):
    """Films and who rated them how, y is the rating: 1 to 5, in halves from 0.5 on in the newer releases.

    `variant` 100k, 1m, latest-small, latest, 20m, 25m or 32m is read from the folder ml-VARIANT below `--data-dir`,
    with the files as they come out of the archive. Groups of people: `activity` and `favourite`; 100k and 1m also
    `gender`, `age` (the groups of 1m) and `occupation`. The program does not download them: their licence asks
    everybody to fetch them from GroupLens.

    Source: Harper, Konstan 2015, The MovieLens Datasets, ACM TiiS 5(4), https://grouplens.org/datasets/movielens/.
    Licence: research use, no redistribution without permission; read the README of each archive.
    """

    name: Literal["movielens"] = "movielens"
    variant: Literal["100k", "1m", "latest-small", "latest", "20m", "25m", "32m"] = "1m"

    def load(self, folder: Path) -> Source:
        try:
            table = read(folder / f"ml-{self.variant}", FORMS[self.variant])
        except OSError as error:
            raise ValueError(f"{error.filename}: {error.strerror}; {self._where(folder)}") from None
        return source(table, self.fold, f"{self.name}-{self.variant}")

    def fetch(self, folder: Path) -> str:
        form = FORMS[self.variant]
        missing = [name for name in (form.ratings, form.films) if not (folder / f"ml-{self.variant}" / name).is_file()]
        if missing:
            raise ValueError(f"not downloaded by this program; {self._where(folder)}")
        return f"{folder / f'ml-{self.variant}'}: {form.ratings} is there"

    def _where(self, folder: Path) -> str:
        form = FORMS[self.variant]
        files = ", ".join(name for name in (form.ratings, form.films, form.people) if name)
        return (
            f"download ml-{self.variant}.zip from {PAGE} and unpack it, so that {files} are in "
            f"{folder / f'ml-{self.variant}'}, or name the folder above with --data-dir"
        )


def read(folder: Path, form: Form) -> Table:
    """The table in the files of a release; ValueError with file and line for the first thing that is wrong, OSError if
    a file is not there."""
    path, first = folder / form.ratings, 2 if form is _CSV else 1
    raw = path.read_bytes()
    frame = _parsed(raw, form)
    if frame is None or not len(frame):
        raise ValueError(f"{path}: {_fault(raw, form, first)}")
    user, item, rating = (frame[name].to_numpy() for name in ("user", "item", "rating"))
    off = np.flatnonzero(~np.isin(rating, [float(level) for level in form.scale]))
    if len(off):
        raise ValueError(
            f"{path}, line {off[0] + first}: rating {rating[off[0]]:g} is not on the scale {form.scale[0]} to "
            f"{form.scale[-1]}"
        )
    users, user = np.unique(user, return_inverse=True)
    items, item = np.unique(item, return_inverse=True)
    repeated = twice(user, item)
    if repeated is not None:
        earlier, later = repeated
        raise ValueError(
            f"{path}, line {later + first}: user {users[user[later]]} rated item {items[item[later]]} before, in line "
            f"{earlier + first}"
        )
    films = _films(folder / form.films, form)
    for number in items.tolist():
        if number not in films:
            at = int(np.flatnonzero(items[item] == number)[0]) + first
            raise ValueError(f"{path}, line {at}: item {number} is not in {form.films}")
    people = {} if form.people is None else _people(folder / form.people, form, users)
    return Table(user, item, rating, form.scale, people, [films[number] for number in items.tolist()])


def _parsed(raw: bytes, form: Form) -> pd.DataFrame | None:
    """The ratings, by a fast reader that does not say where a fault is; None if there is one."""
    if raw.partition(b"\n")[0].count(form.separator.encode()) != len(_COLUMNS) - 1:
        return None  # of a first line that is too long the reader would drop the rest
    try:
        return pd.read_csv(
            io.BytesIO(raw.replace(b"::", b"\t") if form.separator == "::" else raw),
            sep="," if form.separator == "," else "\t",
            header=0 if form is _CSV else None,
            names=list(_COLUMNS),
            dtype=_COLUMNS,
            index_col=False,
            skip_blank_lines=False,
            na_filter=False,
            on_bad_lines="error",
        )
    except (ValueError, OverflowError):
        return None


def _fault(raw: bytes, form: Form, first: int) -> str:
    """The first line that is no rating."""
    for number, line in enumerate(raw.decode(form.encoding).splitlines(), 1):
        fields = line.split(form.separator)
        if number < first:
            continue
        if len(fields) != len(_COLUMNS):
            return f"line {number}: {len(fields)} fields where there should be {len(_COLUMNS)}"
        for value, (name, kind) in zip(fields, _COLUMNS.items(), strict=True):
            try:
                known = math.isfinite(int(value) if kind is np.int64 else float(value))
            except (ValueError, OverflowError):
                known = False
            if not known:
                return f"line {number}: {name} = {value!r} is no number"
    return "no ratings in it"


def _lines(path: Path, form: Form, separator: str, fields: int) -> Iterator[tuple[int, list[str]]]:
    """The lines of a small file, cut into fields, numbered; ValueError for a line with another number of them."""
    text = path.read_text(form.encoding)
    rows = csv.reader(io.StringIO(text)) if form is _CSV else (line.split(separator) for line in text.splitlines())
    for number, row in enumerate(rows, 1):
        if len(row) != fields:
            raise ValueError(f"{path}, line {number}: {len(row)} fields where there should be {fields}")
        if form is not _CSV or number > 1:
            yield number, row


def _number(path: Path, line: int, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{path}, line {line}: {value!r} is no number") from None


def _films(path: Path, form: Form) -> dict[int, tuple[str, ...]]:
    """The genres of each film, by its number."""
    if form is _OLD:
        return {
            _number(path, line, row[0]): tuple(g for g, flag in zip(_GENRES, row[5:], strict=True) if flag == "1")
            for line, row in _lines(path, form, "|", 5 + len(_GENRES))
        }
    return {
        _number(path, line, row[0]): tuple(row[2].split("|")) for line, row in _lines(path, form, form.separator, 3)
    }


def _people(path: Path, form: Form, users: np.ndarray) -> dict[str, np.ndarray]:
    """Gender, age group and occupation of each of `users`."""
    found = {}
    for line, row in _lines(path, form, "|" if form is _OLD else form.separator, 5):
        age, gender = (row[1], row[2]) if form is _OLD else (row[2], row[1])
        if gender not in ("F", "M"):
            raise ValueError(f"{path}, line {line}: gender {gender!r} is neither F nor M")
        start = max((low for low in AGES if low <= _number(path, line, age)), default=1)
        found[_number(path, line, row[0])] = (gender, AGES[start], row[3])
    for number in users.tolist():
        if number not in found:
            raise ValueError(f"{path}: user {number} of {form.ratings} is not in it")
    columns = zip(*(found[number] for number in users.tolist()), strict=True)
    return {name: np.array(column) for name, column in zip(("gender", "age", "occupation"), columns, strict=True)}


def write(folder: Path, table: Table, form: Form) -> None:
    """Write a table as the files of a release, users and items counted from 1."""
    folder.mkdir(parents=True, exist_ok=True)
    mark, genres = form.separator, table.genres
    head = [] if form is not _CSV else ["userId,movieId,rating,timestamp"]
    rows = zip(table.user.tolist(), table.item.tolist(), table.rating.tolist(), strict=True)
    lines = [mark.join((str(u + 1), str(i + 1), f"{r:g}", str(10**9 + n))) for n, (u, i, r) in enumerate(rows)]
    _write(folder / form.ratings, head + lines, form)
    titles = [f'"Film, The {i + 1}"' if form is _CSV else f"Film, The {i + 1} (1995)" for i in range(len(genres))]
    if form is _OLD:
        flags = ["|".join("01"[name in own] for name in _GENRES) for own in genres]
        films = [f"{i + 1}|{title}|01-Jan-1995||http://|{flags[i]}" for i, title in enumerate(titles)]
    else:
        films = [mark.join((str(i + 1), title, "|".join(genres[i]))) for i, title in enumerate(titles)]
    _write(folder / form.films, (["movieId,title,genres"] if form is _CSV else []) + films, form)
    if form.people is not None:
        starts = {name: str(start) for start, name in AGES.items()}
        who = zip(table.people["gender"].tolist(), table.people["age"].tolist(), strict=True)
        mixed = [(starts[age], gender) if form is _OLD else (gender, starts[age]) for gender, age in who]
        mark = "|" if form is _OLD else mark
        _write(folder / form.people, [mark.join((str(u + 1), *two, "1", "0")) for u, two in enumerate(mixed)], form)


def _write(path: Path, lines: list[str], form: Form) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), form.encoding)
