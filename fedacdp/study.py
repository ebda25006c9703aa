"""A study: every run of a grid with its baseline, resumed where it stopped, several in flight."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fedacdp import ranking
from fedacdp.acting import parties
from fedacdp.certified import certificate
from fedacdp.checkpoint import Checkpoint
from fedacdp.config import ConfigError, Execution, Experiment
from fedacdp.grid import Study, find_study
from fedacdp.privacy import accounting
from fedacdp.privacy.base import Noisy
from fedacdp.products import one_thread
from fedacdp.results import (
    manifest_of,
    save_model,
    save_rounds,
    save_users,
    write,
    write_json,
)
from fedacdp.rounds import Compute, Diverged, NodeFailure, Partial, compute_here, run
from fedacdp.setting import Setting, prepare
from fedacdp.tasks import pack_task, read_partials

_PACKAGES = ("fedacdp", "torch", "numpy", "dp-accounting", "opacus", "flwr", "ray")


@dataclass(frozen=True)
class Task:
    """One run to do: the experiment, its folder, and whether it was asked for or is only a baseline."""

    experiment: Experiment
    folder: Path
    role: str


class Display(Protocol):
    """Who is told how a study comes along."""

    def begin(self, rounds: int) -> None:
        """The rounds that are to be done in all."""

    def advance(self, task: Task, rounds: int) -> None:
        """So many more rounds of a task are done."""

    def end(self, task: Task, status: str, reason: str) -> None:
        """A task has ended."""


Engine = Callable[[Execution], Any]
"""A context manager that gives the `Compute` of an execution."""


def plan(
    study: Study, out: Path, execution: Execution, part: list[Experiment] | None = None
) -> tuple[Path, list[Task]]:
    """Check everything and say what is to be done, baselines first, of the whole study or of `part` of its experiments;
    writes nothing. ConfigError for wrong input."""
    experiments = study.experiments() if part is None else part
    folder = out / study.name
    _check_folder(folder, study)
    asked = {experiment.run_id for experiment in experiments}
    baselines = {e.baseline.run_id: e.baseline for e in experiments if e.baseline.run_id not in asked}
    tasks = [Task(e, folder / e.run_id, "baseline") for e in baselines.values()]
    tasks += [Task(e, folder / e.run_id, "run") for e in sorted(experiments, key=lambda e: e.strategy.alpha > 0)]
    left = [task for task in tasks if not _is_done(task)]
    for experiment in {task.experiment.kind: task.experiment for task in left}.values():
        prepare(experiment, execution)  # a seed makes nothing right or wrong
    return folder, left


def execute(
    study: Study, folder: Path, tasks: list[Task], execution: Execution, compute: Compute, display: Display
) -> int:
    """Do the tasks, `execution.jobs` at a time; returns how many failed. A failed run does not stop the others."""
    _claim(folder, study)
    display.begin(sum(task.experiment.training.rounds for task in tasks))
    failed = 0
    with ThreadPoolExecutor(execution.jobs) as pool:
        running = {pool.submit(perform, study, task, execution, compute, display): task for task in tasks}
        try:
            for future in as_completed(running):
                failed += future.result() == "failed"
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def perform(study: Study, task: Task, execution: Execution, compute: Compute, display: Display) -> str:
    """Do one run, or the rest of it; returns its status: done, diverged or failed."""
    folder, began = task.folder, time.time()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        setting = prepare(task.experiment, execution)
    except ConfigError as error:  # what fits for one seed need not for another: groups have other sizes
        display.end(task, "failed", str(error))
        return "failed"
    write_json(folder / "experiment.json", json.loads(task.experiment.text))
    checkpoint = Checkpoint(folder)
    state, rows = checkpoint.load() or (None, [])
    if state is not None:
        display.advance(task, state.round)
    status, reason = "done", ""
    certified: dict[str, Any] = {}
    try:
        for reached, row in run(setting, execution, compute, state):
            state = reached
            rows.append(row)
            display.advance(task, 1)
            if state.round % execution.checkpoint_every == 0 and state.round < task.experiment.training.rounds:
                checkpoint.save(state, rows)
        assert state is not None
        _check_draws(setting, state.sent, state.draws)
        certified = certificate(setting)
    except Diverged as error:
        status, reason = "diverged", str(error)
    except NodeFailure:
        raise
    except Exception as error:  # whatever a strategy or model of the user's raises: record it, go on with the others
        status, reason = "failed", f"{type(error).__name__}: {error}"
    if task.role == "run" and status == "done" and state is not None:
        save_model(folder, setting.net.shapes, state.parameters)
    if status == "done" and state is not None and setting.federation.schema.items:
        save_users(folder, ranking.by_user(setting, state.parameters, state.round))
    save_rounds(folder, rows)
    manifest = _manifest(study, task, execution, setting, status, reason, began, len(rows))
    write_json(folder / "manifest.json", manifest | {"certificate": certified})
    checkpoint.remove()
    display.end(task, status, reason)
    return status


def _check_draws(setting: Setting, sent: int, drawn: int) -> None:
    expected = setting.mechanism.draws(setting.plan, sent)
    if drawn != expected:
        raise RuntimeError(f"privacy: {drawn} noise vectors were drawn where {expected} are accounted for")


def _manifest(
    study: Study,
    task: Task,
    execution: Execution,
    setting: Setting,
    status: str,
    reason: str,
    began: float,
    rounds: int,
) -> dict[str, Any]:
    opinions = {}
    if isinstance(setting.mechanism, Noisy):
        opinions = accounting.second_opinions(setting.mechanism.releases(setting.plan), setting.mechanism.delta)
    return {
        "status": status,
        "reason": reason,
        "study": study.name,
        "question": study.question,
        "run_id": task.experiment.run_id,
        "role": task.role,
        "rounds_done": rounds,
        "guarantee": setting.guarantee.to_json() | {"opinions": opinions},
        "execution": execution.model_dump(mode="json", exclude={"data_dir", "ray_address"}),
        "data_sha256": setting.federation.train.digest,
        "users": setting.plan.users,
        "members": int(setting.member.sum()),
        "label_shares": {
            party: setting.federation.label_shares(who)
            for party, who in parties(setting.strategy, setting.member, setting.federation.group).items()
        },
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "seconds": round(time.time() - began, 3),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES}
        | {"python": platform.python_version()},
    }


def _is_done(task: Task) -> bool:
    """Whether the run is there: a baseline may stand in for nothing, a run for a baseline."""
    manifest = manifest_of(task.folder)
    if manifest is None or manifest["status"] == "failed":
        return False
    return manifest["role"] == task.role or task.role == "baseline"


def _check_folder(folder: Path, study: Study) -> None:
    """ConfigError if the study cannot be written to `folder`, or another study is there."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"--out: {existing}: cannot be written")
    if (folder / "study.json").exists():
        try:
            there = json.loads((folder / "study.json").read_text())["question"]
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{folder / 'study.json'}: damaged; choose another --out") from None
        if there != study.question:
            raise ConfigError(f"{folder}: holds another study under this name, {there!r}; choose another --out")
    elif folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: holds something that is not a study; choose another --out")


def _claim(folder: Path, study: Study) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "study.json", (json.dumps(study.model_dump(mode="json"), indent=1) + "\n").encode())
    except OSError as error:
        raise ConfigError(f"--out: {folder}: cannot be written ({error.strerror})") from None


def run_in_app(options: dict[str, str], perform_task: Callable[[bytes], bytes]) -> None:
    """Run the study that a Flower run configuration names, `study` and optionally `out`, with that app's own nodes."""
    execution = Execution()

    def compute(setting: Setting, parameters: np.ndarray, round: int, chunks: list[np.ndarray]) -> list[Partial]:
        if not chunks:
            return []
        return read_partials(perform_task(pack_task(setting, execution, parameters, round, chunks)), len(chunks))

    study = find_study(options["study"])
    folder, tasks = plan(study, Path(options.get("out", "results")).expanduser(), execution)
    execute(study, folder, tasks, execution, compute, Quiet())


class Quiet:
    """A display for where nobody looks."""

    def begin(self, rounds: int) -> None:
        """The rounds that are to be done in all."""

    def advance(self, task: Task, rounds: int) -> None:
        """So many more rounds of a task are done."""

    def end(self, task: Task, status: str, reason: str) -> None:
        """A task has ended."""


@contextmanager
def here(execution: Execution) -> Iterator[Compute]:
    """The engine `local`: every chunk in this process, on one thread so that it gives the bits of any other engine."""
    put_back = one_thread()
    try:
        yield compute_here
    finally:
        put_back()
