"""Under which conditions a row is measured: sizes, repetitions, data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import Missing, Peers
from benchmarks.sides import Side, interleaved
from fedacdp.data import files, mnist

ROUNDS = 10**6  # a side is stopped from outside
CENTRAL = {"name": "central", "noise_multiplier": 0.5, "delta": 1e-5, "clip_norm": 1.0}


@dataclass(frozen=True)
class Conditions:
    """`quick`: sizes that show that everything works and measure nothing; `chunk`: None for the default of fedacdp."""

    repeats: int
    quick: bool
    chunk: int | None
    data_dir: Path
    peers: Peers

    def size(self, full: int, quick: int) -> int:
        """Users of a round."""
        return quick if self.quick else full

    def interleaved(self, *sides: Side, at_most: int = 10**6) -> list[list[dict[str, float]]]:
        """The answers of each side, `repeats` of them or `at_most`, where a turn takes minutes."""
        return interleaved(list(sides), min(self.repeats, at_most), 0.1 if self.quick else 1.0)

    def chunked(self) -> tuple[str, ...]:
        """--chunk for our programs."""
        return () if self.chunk is None else ("--chunk", str(self.chunk))

    def execution(self, **changes: Any) -> dict[str, Any]:
        """An execution with our data and chunk."""
        chunk = {} if self.chunk is None else {"chunk": self.chunk}
        return {"data_dir": str(self.data_dir), **chunk, **changes}

    def data(self, users: int, records: int) -> tuple[dict[str, Any], list[str]]:
        """MNIST in the hands of `users` users, `records` images each, drawn with replacement; and what is to be said
        about it. Missing if it is not there; in a quick run, digits stand in for it."""
        notes = ["digits stand in for MNIST"] if self.quick else []
        labels = mnist.FILES["train-labels-idx1-ubyte.gz"]
        try:
            if not self.quick:
                files.read(self.data_dir.expanduser(), labels, "mnist")
        except ValueError as error:
            raise Missing(f"needs MNIST in --data-dir: {error}") from None
        name = "digits" if self.quick else "mnist"
        return {"name": name, "users": users, "partition": "resampled", "records": records}, notes

    def experiment(self, users: int, records: int, **changes: Any) -> tuple[dict[str, Any], list[str]]:
        """Every user in every round, five steps over its records, mlp, central privacy, no evaluation; and the notes
        about its data."""
        data, notes = self.data(users, records)
        training = {
            "rounds": ROUNDS,
            "sampling_prob": 1.0,
            "local_steps": 5,
            "batch": max(1, records // 5),
            "local_lr": 0.1,
            "evaluate_every": ROUNDS,
        }
        experiment = {
            "data": data,
            "model": {"name": "mlp"},
            "strategy": {"name": "honest"},
            "privacy": CENTRAL,
            "training": training | changes.pop("training", {}),
        }
        return experiment | changes, notes


def program(name: str, program: str, **given: Any) -> Side:
    """A side whose program takes one argument, JSON."""
    return Side(name, program, (json.dumps(given),))
