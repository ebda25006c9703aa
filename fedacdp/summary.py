"""`fedacdp summary`: what the seeds of a study say, with intervals: critical mass, success, and paired differences."""

from __future__ import annotations

import itertools
import json
import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from fedacdp.config import ConfigError
from fedacdp.results import as_csv, table
from fedacdp.statistics import critical_mass, difference, mean_interval

COLUMNS = ["study", "kind", "group", "setting", "less", "alpha", "success", "value", "low", "high", "seeds"]
"""`kind` is `critical_mass` (value: the alpha at which mean success is `success`), `success` (its mean at an alpha) or
`difference` (of success, that of `setting` less that of `less`, over the seeds that both have)."""


class Format(StrEnum):
    """Formats of the summary."""

    text = "text"
    csv = "csv"
    json = "json"


def summary(
    folder: Annotated[Path, typer.Argument(help="A folder of results.")],
    success: Annotated[float, typer.Option(help="The success that counts as reached.")] = 0.5,
    format: Annotated[Format, typer.Option(help="Format.")] = Format.text,
) -> None:
    """Say how large a collective must be, and what mechanisms change, with 95 % intervals over seeds."""
    if not 0 < success < 1:
        raise ConfigError(f"--success = {success}: must be above 0 and below 1")
    found = rows(table(folder), success)
    if found.empty:
        raise ConfigError(f"{folder}: no run that is done has a success")
    if format is Format.csv:
        typer.echo(as_csv(found), nl=False)
    elif format is Format.json:
        typer.echo(json.dumps([_plain(row) for row in found.to_dict("records")], indent=1, allow_nan=False))
    else:
        for line in told(found):
            typer.echo(line)


def rows(frame: pd.DataFrame, level: float) -> pd.DataFrame:
    """The summary of a tidy table, columns COLUMNS: success in the last round of the runs that are done. A critical
    mass takes the seeds and alphas that are complete, see `complete`."""
    last = frame[(frame["metric"] == "success") & (frame["status"] == "done")].dropna(subset=["value"])
    last = last[last["round"] == last.groupby(["study", "run_id"])["round"].transform("max")]
    whole = last["group"] == "all"  # or, where there are several collectives, each of them
    last = last[whole if whole.any() else ~last["group"].str.contains(".", regex=False)]
    found: list[dict[str, Any]] = []
    for (study, group), some in last.groupby(["study", "group"], sort=False):
        about = {"study": study, "group": group}
        grids = {
            str(setting): own.pivot_table(index="seed", columns="alpha", values="value")
            for setting, own in some.groupby("setting", sort=False)
        }
        for setting, grid in grids.items():
            whole = complete(grid)
            mass = critical_mass(whole.columns.to_numpy(), whole.to_numpy(), level)
            ends = {"success": level, "value": mass.value, "low": mass.low, "high": mass.high, "seeds": mass.seeds}
            found.append(about | {"kind": "critical_mass", "setting": setting} | ends)
            for alpha, values in grid.items():
                there = values.dropna()
                low, high = mean_interval(there)
                ends = {"value": there.mean(), "low": max(low, 0.0), "high": min(high, 1.0), "seeds": len(there)}
                found.append(about | {"kind": "success", "setting": setting, "alpha": alpha} | ends)
        for (setting, one), (less, other) in itertools.combinations(grids.items(), 2):
            for alpha in one.columns.intersection(other.columns):
                pairs = pd.concat([one[alpha], other[alpha]], axis=1, join="inner").dropna().to_numpy()
                if len(pairs):
                    apart = vars(difference(pairs[:, 0], pairs[:, 1]))
                    found.append(
                        about | {"kind": "difference", "setting": setting, "less": less, "alpha": alpha} | apart
                    )
    return pd.DataFrame(found, columns=COLUMNS)


def complete(grid: pd.DataFrame) -> pd.DataFrame:
    """Of seeds by alphas the part without gaps that is left when again and again the seed or the alpha goes that lacks
    the largest share of its values; of two alike, the alpha goes."""
    while grid.isna().to_numpy().any():
        by_seed, by_alpha = grid.isna().mean(axis=1), grid.isna().mean(axis=0)
        if by_alpha.max() >= by_seed.max():
            grid = grid.drop(columns=by_alpha.idxmax())
        else:
            grid = grid.drop(index=by_seed.idxmax())
    return grid


def told(found: pd.DataFrame) -> list[str]:
    """The summary in lines: for each setting the critical mass, then the differences whose interval leaves out 0."""
    lines = []
    for row in found[found["kind"] == "critical_mass"].itertuples():
        of = "" if row.group == "all" else f" of {row.group}"
        lines.append(
            f"{row.study}, {row.setting}: a success{of} of {row.success:g} takes {_share(row.value)} of the users, "
            f"{_between(row.low, row.high, _share)}{_seeds(row.seeds)}"
        )
    apart = found[found["kind"] == "difference"]
    clear = apart[(apart["low"] > 0) | (apart["high"] < 0)]
    if len(apart):
        where = "" if len(clear) <= _LINES else "; --format csv has them"
        lines.append(f"Paired differences of success: {len(clear)} of {len(apart)} intervals leave out 0{where}.")
    for row in clear.itertuples() if len(clear) <= _LINES else ():
        lines.append(
            f"{row.study}, alpha = {row.alpha:g}: {row.setting} less {row.less}: {row.value:+.3f}, "
            f"{_between(row.low, row.high, '{:+.3f}'.format)}{_seeds(row.seeds)}"
        )
    return lines


_LINES = 20  # of differences that a person reads


def _share(alpha: float) -> str:
    return "more than was measured (not reached)" if math.isinf(alpha) else f"{100 * alpha:.3g} %"


def _between(low: float, high: float, say: Any) -> str:
    if math.isnan(low):
        return "no interval, "
    return f"95 % interval {say(low)} to {'not reached' if math.isinf(high) else say(high)}, "


def _seeds(count: int) -> str:
    return f"{count} seed{'s' if count > 1 else ''}"


def _plain(row: dict[Any, Any]) -> dict[str, Any]:
    """A row as JSON has it: None for what it does not have, "not reached" for infinity."""

    def plain(value: Any) -> Any:
        if not isinstance(value, float | np.floating):
            return value
        return "not reached" if math.isinf(value) else None if math.isnan(value) else float(value)

    return {str(name): plain(value) for name, value in row.items()}
