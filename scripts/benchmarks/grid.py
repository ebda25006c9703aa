"""A study of small runs, as `fedacdp run` does it, from its plan to its files.

    python -m benchmarks.grid '{"study": ..., "execution": ...}'
A unit of work is the whole study in a new folder; nodes are started, and have the data, before the first turn. The rate
is in runs per second.
"""

import json
import sys
import tempfile
from pathlib import Path

from benchmarks.turns import take_turns
from fedacdp.config import Execution
from fedacdp.grid import Study
from fedacdp.nodes import nodes
from fedacdp.study import Quiet, execute, here, plan


def main() -> None:
    given = json.loads(sys.argv[1])
    execution = Execution.model_validate(given["execution"])
    study = Study.model_validate(given["study"])
    with (nodes if execution.engine == "flower" else here)(execution) as compute:

        def all_runs() -> int:
            with tempfile.TemporaryDirectory(prefix="fedacdp-bench-") as out:
                folder, tasks = plan(study, Path(out), execution)
                if execute(study, folder, tasks, execution, compute, Quiet()):
                    raise RuntimeError("a run of the grid failed")
                return len(tasks)

        take_turns(all_runs)


if __name__ == "__main__":
    main()
