"""`fedacdp compare`: what central and local privacy cost at the same total (epsilon, delta)."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any

import typer

from fedacdp.config import ConfigError
from fedacdp.plan import Format
from fedacdp.privacy.base import Plan
from fedacdp.privacy.compare import MECHANISMS, UNITS, Compared
from fedacdp.privacy.compare import compare as compared

_SHOWN = (
    "mechanism",
    "unit",
    "observer",
    "adjacency",
    "messages",
    "noise_multiplier",
    "sigma",
    "noise_on_mean",
    "members",
)


class Neighbours(StrEnum):
    """Between which worlds the epsilons hold."""

    replace_one = "replace_one"
    add_or_remove = "add_or_remove"
    customary = "customary"


def compare(
    users: Annotated[int, typer.Option(min=1, help="N.")],
    sampling_prob: Annotated[float, typer.Option(help="q, the chance of a user to be in a round.")],
    rounds: Annotated[int, typer.Option(min=1, help="T.")],
    epsilon: Annotated[float, typer.Option(help="Of the whole run.")],
    delta: Annotated[float, typer.Option(help="Of the whole run.")] = 1e-5,
    clip_norm: Annotated[float, typer.Option(help="C, of updates (of gradients for local_dpsgd).")] = 1.0,
    mechanism: Annotated[
        list[str] | None, typer.Option(help="May be given several times.", show_default="central, local_update")
    ] = None,
    neighbours: Annotated[
        Neighbours, typer.Option(help="The same for all, or customary: each has its own.")
    ] = Neighbours.replace_one,
    max_messages: Annotated[
        int | None, typer.Option(min=1, help="Of a user, under local privacy.", show_default="ceil(q T)")
    ] = None,
    snr: Annotated[float, typer.Option(min=0, help="Signal to noise that the collective wants over all rounds.")] = 1.0,
    across_units: Annotated[
        bool, typer.Option("--across-units", help="Let epsilons of users and of examples stand side by side.")
    ] = False,
    records: Annotated[int, typer.Option(min=1, help="Of each user; for local_dpsgd.")] = 1,
    local_steps: Annotated[int, typer.Option(min=1, help="In a round; for local_dpsgd.")] = 1,
    batch_prob: Annotated[float, typer.Option(help="Chance of an example to enter a step; for local_dpsgd.")] = 1.0,
    format: Annotated[Format, typer.Option(help="Format.")] = Format.text,
) -> None:
    """Calibrate central and local privacy to the same epsilon and say what noise each puts on the mean."""
    for name, value in (("sampling-prob", sampling_prob), ("batch-prob", batch_prob)):
        if not 0 < value <= 1:
            raise ConfigError(f"--{name} = {value}: must be above 0, at most 1")
    if not 0 < clip_norm < math.inf:
        raise ConfigError(f"--clip-norm = {clip_norm}: must be above 0, and finite")
    plan = Plan(users, sampling_prob, rounds, local_steps, batch_prob * records, batch_prob)
    names = mechanism or ["central", "local_update"]
    if len({UNITS.get(name) for name in names if name in MECHANISMS}) > 1 and not across_units:
        raise ConfigError(
            f"--mechanism = {', '.join(names)}: an epsilon of examples and one of users are different promises; "
            "--across-units puts them side by side all the same"
        )
    try:
        found = compared(
            epsilon, delta, plan, clip_norm, names, adjacency=neighbours.value, max_messages=max_messages, snr=snr,
            across_units=across_units, records=records,
        )  # fmt: skip
    except ValueError as error:
        raise ConfigError(f"--{error}") from None
    rows, said = [_plain(row) for row in found], told(found, epsilon, delta)
    if format is Format.json:
        typer.echo(json.dumps({"epsilon": epsilon, "delta": delta, "said": said, "mechanisms": rows}, indent=1))
    elif format is Format.csv:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        typer.echo(text.getvalue(), nl=False)
    else:
        typer.echo("\n".join([*said, "", *_table(rows, format is Format.md)]))


def told(found: list[Compared], epsilon: float, delta: float) -> list[str]:
    """What the table means, and what it does not, line by line."""
    lines = [
        f"Each at epsilon = {epsilon:g}, delta = {delta:g} for the whole run; accounted by PLD, tuning not counted."
    ]
    if len({row.adjacency for row in found}) > 1:
        lines.append("Not the same promise: neighbours differ, see the column adjacency.")
    elif found[0].adjacency == "replace_one":
        lines.append("Neighbours: one unit's data replaced, which moves a release by up to 2C (central noise too).")
    else:
        lines.append("Neighbours: one unit added or removed, up to C; of a message: a user's or one of noise alone.")
    if len({row.observer for row in found}) > 1:
        lines.append("Against different observers: central noise does not protect against the server.")
    if len({row.unit for row in found}) > 1:
        lines.append("Not the same promise: some protect a user, others one example.")
    for row in found:
        if row.unit == "example":
            finite = math.isfinite(row.user_epsilon)
            whole = f"epsilon = {row.user_epsilon:.4g} at delta = {row.user_delta:.3g}" if finite else "none finite"
            lines.append(f"{row.mechanism}: {row.note}; of a user with all its examples: {whole}.")
    return lines


def _plain(row: Compared) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(row).items()
    }


def _table(rows: list[dict[str, Any]], markdown: bool) -> list[str]:
    shown = [list(_SHOWN), *([_cell(row[name]) for name in _SHOWN] for row in rows)]
    if markdown:
        shown.insert(1, ["---"] * len(_SHOWN))
        return [f"| {' | '.join(line)} |" for line in shown]
    widths = [max(len(line[place]) for line in shown) for place in range(len(_SHOWN))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in shown]


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
