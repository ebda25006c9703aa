"""`fedacdp plan`: what a collective can know beforehand, from its own rows. It needs no model and no platform."""

from __future__ import annotations

import dataclasses
import json
import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from fedacdp.cells import Rows, fits, read, some
from fedacdp.config import ConfigError
from fedacdp.keys import Key
from fedacdp.theory import certificates, private_histogram, thresholds
from fedacdp.theory.certificates import Cells, Terms

_SIZES = 40  # points of the curve
_LARGEST = 1e12  # of an epsilon and of a platform: beyond, numbers are no longer exact


class Strategy(StrEnum):
    """What members do: Theorems 3.3, 3.5, 3.7 and 3.9."""

    feature_label = "feature_label"
    feature_only = "feature_only"
    unplant = "unplant"
    erase = "erase"


class Bound(StrEnum):
    """How deviations are bounded."""

    hoeffding = "hoeffding"
    bernstein = "bernstein"


class Format(StrEnum):
    """Formats of the answer."""

    text = "text"
    md = "md"
    json = "json"
    csv = "csv"


def plan(
    table: Annotated[Path, typer.Argument(help="The collective's rows, CSV with a header.")],
    label: Annotated[str, typer.Option(help="The column of labels.")],
    signal: Annotated[list[str], typer.Option(help="COL=VALUE that members set; may be given several times.")],
    platform_size: Annotated[int, typer.Option(help="N: records of the platform, the collective's among them.")],
    target: Annotated[
        str | None, typer.Option(help="The label to plant, or to unplant. Not needed to erase.", show_default=False)
    ] = None,
    strategy: Annotated[Strategy, typer.Option(help="What members do.")] = Strategy.feature_label,
    test_size: Annotated[
        int | None, typer.Option(help="Fresh records on which success is counted.", show_default="N / 10")
    ] = None,
    delta: Annotated[float, typer.Option(help="The certificate may fail with this probability.")] = 0.05,
    success: Annotated[float, typer.Option(help="Wanted success.")] = 0.5,
    columns: Annotated[
        str | None,
        typer.Option(help='"A,B": columns that tell cells apart beside the signal\'s; "" for one cell; default all.'),
    ] = None,
    estimators: Annotated[
        int | None, typer.Option(help="To unplant: rows that choose the label.", show_default="a fifth")
    ] = None,
    bound: Annotated[Bound, typer.Option(help="bernstein is sharper for rare cells.")] = Bound.hoeffding,
    central_epsilon: Annotated[float | None, typer.Option(help="Also: the server adds noise to its counts.")] = None,
    local_epsilon: Annotated[float | None, typer.Option(help="Also: every user adds noise to its record.")] = None,
    privacy_delta: Annotated[float, typer.Option(help="delta of these two privacies.")] = 1e-5,
    delimiter: Annotated[str, typer.Option(help="Of the CSV.")] = ",",
    picture: Annotated[Path | None, typer.Option(help="Also draw success against size: FILE.svg or .png.")] = None,
    format: Annotated[Format, typer.Option(help="Format.")] = Format.text,
) -> None:
    """Say from the collective's own rows how large it must be: certified, and in expectation."""
    if picture is not None and picture.suffix not in (".svg", ".png"):
        raise ConfigError(f"--picture = {picture}: must end in .svg or .png")
    rows = read(table, label, signal, columns, delimiter)
    if target not in rows.labels and not (target is None and strategy is Strategy.erase):
        raise ConfigError(f"--target = {target}: not a label of column {label!r}; there are: {some(rows.labels)}")
    if len(rows.y) > platform_size:
        raise ConfigError(f"--platform-size = {platform_size}: fewer than the {len(rows.y)} rows of {table}")
    if platform_size > _LARGEST:
        raise ConfigError(f"--platform-size = {platform_size}: more than {_LARGEST:,.0f}")
    if not 0 < success < 1:
        raise ConfigError(f"--success = {success}: must be above 0 and below 1")
    places = [place for place in range(len(rows.names)) if strategy is Strategy.erase or place not in rows.signal]
    fits(rows, places)
    wanted = None if target is None or strategy is Strategy.erase else rows.labels.index(target)
    try:
        cells = _cells(rows, places, strategy, wanted, estimators)
        tests = max(1, platform_size // 10) if test_size is None else test_size
        arms = []
        for where, epsilon in (("none", None), ("central", central_epsilon), ("local", local_epsilon)):
            if where == "none" or epsilon is not None:
                about = _noise(where, epsilon, privacy_delta, platform_size)
                terms = Terms(platform_size, tests, delta, bound=bound.value, noise_sd=about["noise_sd"])
                naive = _naive(rows, places, wanted, terms, success) if strategy is Strategy.unplant else []
                arms.append(about | _summary(cells, terms, len(rows.y), success, rows, places) | {"naive": naive})
    except ValueError as error:
        raise ConfigError(f"--{str(error).replace('_', '-', 1)}") from None
    unseen = [f"{rows.names[p]}={rows.levels[p][c]}" for p, c in rows.signal.items() if not (rows.x[:, p] == c).any()]
    given: dict[str, Any] = {
        "strategy": strategy.value,
        "target": target,
        "signal": signal,
        "label": label,
        "labels": rows.labels,
    }
    given |= {
        "platform_size": platform_size,
        "test_size": tests,
        "rows": len(rows.y),
        "delta": delta,
        "bound": bound.value,
        "success": success,
    }
    given |= {"columns": [rows.names[place] for place in places], "number_of_cells": rows.cells(places)}
    found = (
        given | {"unseen": unseen, "estimators": cells.estimators, "eta": cells.eta} | arms[0] | {"private": arms[1:]}
    )

    from fedacdp.report import planned

    found["words"] = planned.words(found)
    if picture is not None:
        planned.draw(found, picture)
    if format is Format.json:
        typer.echo(json.dumps(found, indent=1))
    elif format is Format.csv:
        typer.echo(planned.cells(found), nl=False)
    else:
        typer.echo(planned.told(found, format is Format.md))


def _cells(rows: Rows, places: list[int], strategy: Strategy, target: int | None, estimators: int | None) -> Cells:
    """What the strategy's theorem looks at."""
    code, number, every = rows.code(places), rows.cells(places), np.ones(len(rows.y), bool)
    planted = rows.count(code, every, number)
    if target is None:
        return certificates.erasing(planted, rows.anchors)
    natural = rows.count(code, rows.signalled, number)
    if strategy is not Strategy.unplant:
        make = certificates.feature_label if strategy is Strategy.feature_label else certificates.feature_only
        return make(natural, planted, target)
    few = max(1, len(rows.y) // 5) if estimators is None else estimators
    first = Key(0).fold("estimators").rng().permutation(len(rows.y)) < few  # a file may be sorted
    estimating = rows.count(code, rows.signalled & first, number)
    return certificates.unplanting(estimating, natural - estimating, planted, few, target)[0]


def _naive(rows: Rows, places: list[int], unwanted: int | None, terms: Terms, success: float) -> list[dict[str, Any]]:
    """Unplanting by one label that all send, for each label."""
    assert unwanted is not None
    code, number, every = rows.code(places), rows.cells(places), np.ones(len(rows.y), bool)
    tables = rows.count(code, rows.signalled, number), rows.count(code, every, number)
    ways = certificates.naive_unplanting(*tables, unwanted)
    labels = [name for place, name in enumerate(rows.labels) if place != unwanted]
    return [
        {
            "label": name,
            "certified": certificates.certified(cells, terms, len(rows.y)),
            "members_needed": thresholds.members_needed(cells, terms, success),
        }
        for name, cells in zip(labels, ways, strict=True)
    ]


def _noise(where: str, epsilon: float | None, delta: float, users: int) -> dict[str, Any]:
    """An arm of the answer: mu and the noise on each count of (epsilon, delta), replacing one user's record."""
    if epsilon is None:
        return {"privacy": where, "noise_sd": 0.0}
    if not 0 < epsilon <= _LARGEST:
        raise ValueError(f"{where}_epsilon = {epsilon}: must be above 0, and at most {_LARGEST:g}")
    if not 0 < delta < 1:
        raise ValueError(f"privacy_delta = {delta}: must be above 0, and below 1")
    from dp_accounting import get_sigma_gaussian  # takes seconds to import

    mu = 1 / get_sigma_gaussian(epsilon, delta)
    sd = private_histogram.noise_sd(mu, "local" if where == "local" else "central", users)
    return {"privacy": where, "epsilon": epsilon, "privacy_delta": delta, "mu": mu, "noise_sd": sd}


def _summary(cells: Cells, terms: Terms, n: int, wanted: float, rows: Rows, places: list[int]) -> dict[str, Any]:
    """The numbers of one arm, for n rows and for growing n."""
    certify, sd, whole = thresholds.members_certified(cells, terms), terms.noise_sd, terms.platform_size
    order = np.array(sorted(np.flatnonzero(cells.outer > 0), key=lambda cell: -cells.outer[cell]))
    parts = {name: getattr(cells, name)[order] for name in ("outer", "mass", "own", "rivals")}
    seen = dataclasses.replace(cells, **parts, anchor=None)  # many cells may be empty
    win = private_histogram.members_to_win(seen, whole, sd, wanted) if sd else thresholds.members_expected(seen, whole)

    def expected(members: float) -> float:
        if not sd:
            return float(seen.outer[win <= members].sum())
        if cells.anchor is not None:  # erased where the cell and that of the signal agree, on whatever label
            every, anchor = private_histogram.leads(cells, whole, members), cells.anchor[order]
            alike = private_histogram.agreement(every[order], every[anchor], sd)
            return float(seen.outer @ np.where(anchor == order, 1.0, alike))
        return float(seen.outer @ private_histogram.win_probability(private_histogram.leads(seen, whole, members), sd))

    least = thresholds.first(lambda m: np.array([expected(k) >= wanted for k in m]), 0, whole, 1)[0]
    smallest = cells.estimators + 1
    steps = np.concatenate([[n], certify[order][:_SIZES], win[:_SIZES], np.geomspace(whole / 10_000, whole, _SIZES)])
    sizes = np.unique(np.clip(steps[np.isfinite(steps)].astype(int), smallest, whole))
    return {
        "certified": certificates.certified(cells, terms, n),
        "delta_tilde": certificates.delta_tilde(cells, terms),
        "members_needed": thresholds.members_needed(cells, terms, wanted),
        "members_not_vacuous": thresholds.members_needed(cells, terms, 0.0),
        "members_expected": _whole(least),
        "expected": expected(n),
        "cells": [
            {
                "cell": rows.name(int(cell), places),
                "mass": float(cells.mass[cell]),
                "resistance": float(cells.resistance[cell]),
                "members_certified": _whole(certify[cell]),
                "members_expected": _whole(win[place]),
            }
            for place, cell in enumerate(order)
        ],
        "curve": [
            {"members": int(m), "certified": certificates.certified(cells, terms, int(m)), "expected": expected(m)}
            for m in sizes
        ],
    }


def _whole(number: float) -> int | None:
    return None if math.isinf(number) else int(number)
