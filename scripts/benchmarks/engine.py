"""Rounds of an experiment on any engine.

    python -m benchmarks.engine '{"experiment": ..., "execution": ...}'
A unit of work is a round; nodes are started, and have the data, before the first turn. The rate is in users per second.
"""

import json
import sys

from benchmarks.turns import take_turns
from fedacdp.config import Execution, experiment_from
from fedacdp.nodes import nodes
from fedacdp.rounds import run
from fedacdp.setting import prepare
from fedacdp.study import here

WARM = 4  # rounds: which process serves a node changes, and each must have loaded the data


def main() -> None:
    given = json.loads(sys.argv[1])
    execution = Execution.model_validate(given["execution"])
    setting = prepare(experiment_from(given["experiment"]), execution)
    if setting.plan.sampling_prob != 1:
        raise ValueError("training.sampling_prob: must be 1, or the rate would count users who are not there")
    with (nodes if execution.engine == "flower" else here)(execution) as compute:
        rounds = run(setting, execution, compute)

        def one_round() -> int:
            next(rounds)
            return setting.plan.users

        take_turns(one_round, warm=WARM if execution.engine == "flower" else 1)


if __name__ == "__main__":
    main()
