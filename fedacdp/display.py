"""What a person sees in the terminal: progress with time left, and the closing table."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from fedacdp import bounds, contradictions
from fedacdp.firms import POWER
from fedacdp.results import table

if TYPE_CHECKING:
    from fedacdp.study import Task

_MORE = {bounds.FLOOR: "floor", bounds.CEILING: "ceiling", POWER: POWER}  # shown where there is any
_PLAIN_EVERY = 15.0  # seconds between lines where there is no terminal


class Lines:
    """Progress of a study: a bar on a terminal, a line now and then elsewhere. Safe to use from several threads."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.lock = threading.Lock()
        self.total, self.done, self.began, self.said = 0, 0, time.monotonic(), time.monotonic()
        self.ended: Counter[str] = Counter()
        self.failed: list[str] = []
        self.bar = Progress(
            TextColumn("rounds"), BarColumn(), MofNCompleteColumn(), TextColumn("elapsed"), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.description}"), console=self.console,
        )  # fmt: skip
        self.task: TaskID | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self.bar.stop()

    def begin(self, rounds: int) -> None:
        """The rounds that are to be done in all."""
        self.total = rounds
        self.task = self.bar.add_task("", total=rounds)

    def advance(self, task: Task, rounds: int) -> None:
        """So many more rounds of a task are done."""
        with self.lock:
            now = time.monotonic()
            if self.done == 0:
                self.began = now  # the nodes start before the first round: that says nothing about the pace
            self.done += rounds
            assert self.task is not None
            self.bar.advance(self.task, rounds)
            if not self.console.is_terminal and (now - self.said > _PLAIN_EVERY or self.done == self.total):
                left = (now - self.began) / self.done * (self.total - self.done)
                print(f"{self.done} of {self.total} rounds, about {left:.0f} s left", file=sys.stderr, flush=True)  # noqa: T201
                self.said = now

    def end(self, task: Task, status: str, reason: str) -> None:
        """A task has ended."""
        with self.lock:
            self.ended[status] += 1
            assert self.task is not None
            self.bar.update(self.task, description=", ".join(f"{n} {s}" for s, n in self.ended.items()))
            line = f"run {task.experiment.run_id} {status}: {reason}"
            if status == "failed":
                self.failed.append(line)
            if status != "done":
                self.console.print(escape(line), highlight=False)


def closing_table(folder: Path) -> None:
    """Accuracy, success, its bounds and data leverage power at the last round, for every setting and alpha: mean over
    seeds; then what each guarantee says, warnings, and bounds that are contradicted."""
    console = Console(stderr=True)
    frame = table(folder)
    found = summarise(frame)
    columns = {"accuracy": "accuracy", "success": "success", "success_baseline": "without\ncollective"}
    columns |= {name: title for name, title in _MORE.items() if found[name].notna().any()}
    shown = Table("setting", "alpha", "seeds", *columns.values())
    last = None
    for row in found.to_dict("records"):
        numbers = [escape(_three_digits(row[name])) for name in columns]
        if last is not None and row["setting"] != last:
            shown.add_section()
        shown.add_row(
            "" if row["setting"] == last else escape(row["setting"]), f"{row['alpha']:g}", f"{row['seeds']:g}", *numbers
        )
        last = row["setting"]
    console.print(shown)
    for setting, guarantee in frame.groupby("setting", sort=False).first().iterrows():
        console.print(escape(f"{setting}: {_in_short(guarantee)}"), highlight=False)
    for warning in sorted(set(frame["warning"]) - {""}):
        console.print(escape(f"warning: {warning}"), highlight=False)
    for line in contradictions.told(frame[frame["status"] == "done"]):
        console.print(escape(f"warning: a bound is contradicted: {line}"), highlight=False)


def _in_short(guarantee: pd.Series) -> str:
    if not math.isfinite(guarantee["epsilon"]):
        return "no privacy guarantee"
    observer = "server that sees sums only" if guarantee["observer"] == "sum" else guarantee["observer"]
    return (
        f"epsilon {guarantee['epsilon']:.3g} at delta {guarantee['delta']:g} per {guarantee['unit']}, "
        f"{guarantee['adjacency'].replace('_', '-')}, against the {observer.replace('_', ' ')}"
    )


def _three_digits(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return "" if math.isnan(value) else f"{value:.3f}"


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per setting and alpha: last-round `accuracy`, `success`, `success_baseline`, bounds and `dlp` of group
    "all", mean over the seeds, and their number. Where only groups have a success, a text with that of each."""
    done = frame[frame["status"] == "done"]
    done = done[done["round"] == done.groupby("run_id")["round"].transform("max")]
    last = done[done["group"] == "all"]
    names = ["mechanism", "epsilon", "setting", "alpha", "unit", "observer", "warning"]
    means = last.pivot_table(index=names, columns="metric", values="value", aggfunc="mean", dropna=False, observed=True)
    seeds = last.groupby(names, dropna=False)["run_id"].nunique().rename("seeds")
    found = means.join(seeds, how="inner").reset_index()
    for metric in ("accuracy", "success", "success_baseline", *_MORE):
        if metric not in found:
            found[metric] = float("nan")
    found = found.dropna(subset=["seeds"]).reset_index(drop=True)
    of_collectives = done[(done["group"] != "all") & ~done["group"].str.contains(".", regex=False)]
    for metric in ("success", "success_baseline", *_MORE):
        texts = _of_each(of_collectives[of_collectives["metric"] == metric])
        several = [(row["setting"], row["alpha"]) if pd.isna(row["success"]) else None for _, row in found.iterrows()]
        if any(slot in texts for slot in several):
            found[metric] = [texts.get(slot, value) for slot, value in zip(several, found[metric], strict=True)]
    return found


def _of_each(rows: pd.DataFrame) -> dict[tuple[str, float] | None, str]:
    """Of each setting and alpha a text with the mean of every group."""
    found: dict[tuple[str, float] | None, str] = {}
    for (setting, alpha), groups in rows.dropna(subset=["value"]).groupby(["setting", "alpha"]):
        means = groups.groupby("group")["value"].mean()
        found[str(setting), float(alpha)] = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
    return found


def markdown(frame: pd.DataFrame) -> str:
    """The closing table as Markdown."""
    columns = ["setting", "alpha", "seeds", "epsilon", "unit", "observer", "accuracy", "success", "success_baseline"]
    means = summarise(frame)
    columns += [name for name in _MORE if means[name].notna().any()]
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for row in means[columns].itertuples(index=False):
        cells = [f"{cell:.4g}" if isinstance(cell, float) else str(cell).replace("|", "\\|") for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
