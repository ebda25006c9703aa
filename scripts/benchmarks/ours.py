"""Our side of the fixed workload: whole rounds of `fedacdp.rounds.run` on the workload's users, in this process.

    python -m benchmarks.ours mlp central 1000 [--chunk K] [--device cuda]     # model, mechanism, users a round
A unit of work is a round with all that belongs to one: cohort, keys, copying the users' records out of the data set,
batches in a random order (the peers take them as they lie), local training, norms, clipping, the sum in float64, noise,
the server's step. Evaluation is left out, as it is by the peers. `central`: noise multiplier 0.5 on the sum, as pfl.
`local_dpsgd`: noise multiplier 1 at every local step, Poisson batches of 10 expected records; the Opacus loop takes
fixed batches of 10 and neither clips nor sums updates.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import PositiveInt

from benchmarks import workload
from benchmarks.turns import take_turns
from fedacdp.config import Execution, experiment_from
from fedacdp.data.base import DataSet, Source
from fedacdp.products import one_thread
from fedacdp.rounds import compute_here, run
from fedacdp.setting import Setting, prepare
from fedacdp.users import Examples, Schema

ROUNDS = 10**6  # it is stopped from outside; evaluation would come every so many rounds
PRIVACY: dict[str, dict[str, Any]] = {
    "central": {"name": "central", "noise_multiplier": 0.5, "delta": 1e-5, "clip_norm": workload.CLIP},
    "local_dpsgd": {"name": "local_dpsgd", "noise_multiplier": 1.0, "delta": 1e-5, "clip_norm": workload.CLIP},
}


class Workload(DataSet):
    """The records of `population` users of the workload, user after user, and nothing to test on. What a data set
    loads must not depend on `users`, which is part of how it is cut."""

    name: Literal["workload"] = "workload"
    population: PositiveInt

    def load(self, folder: Path) -> Source:
        x, y = (values.flatten(0, 1).numpy() for values in workload.users(self.population))
        schema = Schema((1, 28, 28), tuple("0123456789"))
        return Source(Examples(x, y, schema), Examples(x[:0], y[:0], schema))


def setting(kind: str, mechanism: str, count: int, execution: Execution) -> Setting:
    """Every user in every round, each with the records that the workload gives it."""
    steps = {"local_epochs": 1} if mechanism == "central" else {"local_steps": workload.EXAMPLES // workload.BATCH}
    experiment = experiment_from(
        {
            "data": Workload(users=count, population=count),
            "model": {"name": kind},
            "strategy": {"name": "honest"},
            "privacy": PRIVACY[mechanism],
            "training": {
                "rounds": ROUNDS,
                "sampling_prob": 1.0,
                "batch": workload.BATCH,
                "local_lr": workload.LR,
                "evaluate_every": ROUNDS,
                **steps,
            },
        }
    )
    prepared = prepare(experiment, execution)
    as_they_lie = np.arange(count * workload.EXAMPLES)
    federation = dataclasses.replace(
        prepared.federation, order=as_they_lie, offsets=np.arange(count + 1) * workload.EXAMPLES
    )
    return dataclasses.replace(prepared, federation=federation)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("mechanism")
    parser.add_argument("count", type=int)
    parser.add_argument("--chunk", type=int)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    one_thread()
    chosen = {} if options.chunk is None else {"chunk": options.chunk}
    execution = Execution(engine="local", device=options.device, **chosen)
    rounds = run(setting(options.kind, options.mechanism, options.count, execution), execution, compute_here)

    def one_round() -> int:
        next(rounds)
        return options.count

    take_turns(one_round, warm=2)


if __name__ == "__main__":
    main()
