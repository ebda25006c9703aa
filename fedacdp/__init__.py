"""fedacdp: federated simulation of algorithmic collective action under local and central differential privacy.

From Python: `load` a study, `run` it, and take its `table`. Importing the package starts nothing and loads little.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd

    from fedacdp.grid import Study

__version__ = "0.1.0"
__all__ = ["load", "run", "table"]


def load(study: str | Path) -> Study:
    """The study in a TOML file, or by name among those in experiments/. `with_set` changes its base, `experiments`
    lists what it would run. `fedacdp.config.ConfigError` if there is none or it is wrong."""
    from fedacdp.grid import find_study

    return find_study(str(study))


def run(
    study: Study | str | Path,
    out: str | Path = "results",
    *,
    engine: Literal["flower", "local"] = "flower",
    nodes: int | None = None,
    chunk: int | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    jobs: int = 2,
    data_dir: str | Path = "~/.cache/fedacdp",
) -> Path:
    """Run a study, or what is missing of it, and return its folder of results, `out`/NAME; the options are those of
    `fedacdp run`. A run that diverges or fails does not stop the others: the table has it with its `status`, and a
    failed one is tried again at the next call. `fedacdp.config.ConfigError` for wrong input, before anything starts;
    `fedacdp.rounds.NodeFailure` if a node is lost: the same call goes on from the last checkpoints."""
    from fedacdp import nodes as flower
    from fedacdp import study as studies
    from fedacdp.machine import schedule
    from fedacdp.memory import fit

    found = load(study) if isinstance(study, str | Path) else study
    options = {"engine": engine, "nodes": nodes, "chunk": chunk, "device": device, "jobs": jobs, "data_dir": data_dir}
    execution, _ = schedule(found.experiments(), options)
    folder, tasks = studies.plan(found, Path(out), execution)
    execution, _ = fit([task.experiment for task in tasks], execution, chunk is not None)
    if tasks:
        start = studies.here if engine == "local" else flower.nodes
        with start(execution) as compute:
            studies.execute(found, folder, tasks, execution, compute, studies.Quiet())
    return folder


def table(folder: str | Path) -> pd.DataFrame:
    """The tidy table of every finished run at or below a folder of results: one row per run, round, metric and group,
    columns as in `fedacdp.results.COLUMNS`. `fedacdp.config.ConfigError` if there is none or a file is damaged."""
    from fedacdp.results import table as tidy

    return tidy(Path(folder))
