"""The work of a round as bytes, and its answer: what travels between an engine and its nodes.

A task holds the experiment, the parameters and the user ids of each chunk; an answer holds a Partial per chunk. Both
are numbered by the place of the chunk, so that a task can be shared out and the answers joined by who does not
understand them.
"""

from __future__ import annotations

import hashlib
import importlib
import platform
import traceback
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch

from fedacdp.config import Execution, Experiment
from fedacdp.data.shared import own_share
from fedacdp.products import one_thread
from fedacdp.rounds import EACH, NodeFailure, Partial, WorkFailed, work
from fedacdp.setting import Setting, prepare
from fedacdp.wire import pack, unpack


def pack_task(
    setting: Setting, execution: Execution, parameters: np.ndarray, round: int, chunks: list[np.ndarray]
) -> bytes:
    """A round's work. The experiment travels with its noise calibrated, which would cost each node seconds.

    To a cluster a digest of our code goes along, because another checkout there would give other numbers in silence.
    """
    arrays = {"parameters": parameters} | {f"{place}/ids": ids for place, ids in enumerate(chunks)}
    folder = execution.data_dir
    if not str(folder).startswith("~"):  # each machine has its own home; but a node may be at work in another folder
        folder = folder.absolute()
    scheduled = {"data_dir": str(folder), "device": execution.device}
    about = {"experiment": setting.calibrated, "execution": scheduled, "round": round, "chunks": len(chunks)}
    about |= {"clip": setting.clip, "watched": setting.watched}
    return pack(arrays, about | {"share": own_share(), "code": code() if execution.ray_address else None})


@cache
def code() -> str:
    """Digest of what makes a number besides its experiment: this code, the strategies, and the versions below them."""
    digest = hashlib.sha256(f"torch {torch.__version__} numpy {np.__version__}".encode())
    for package in ("fedacdp", "strategies"):
        for folder in importlib.import_module(package).__path__:
            for file in sorted(Path(folder).rglob("*.py")):
                digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


@cache
def _threads() -> None:
    """Once in a process: Ray and the cluster's owner allow other numbers of threads."""
    one_thread()


@lru_cache(maxsize=256)
def _experiment(text: str) -> Experiment:
    """Read once, not at every round of every run in flight."""
    return Experiment.model_validate_json(text)


def perform(task: bytes) -> bytes:
    """Do a task in this process and pack the answer; what is raised becomes the answer. What it loads is kept."""
    _threads()
    arrays: dict[str, np.ndarray] = {}
    try:
        given, about = unpack(task)
        if about["code"] not in (None, code()):
            raise RuntimeError(
                f"{platform.node()} has other code: fedacdp, strategies, torch and numpy must be the same"
            )
        execution = Execution.model_validate(about["execution"])
        setting = prepare(_experiment(about["experiment"]), execution, about["share"])
        setting = replace(setting, clip=about["clip"], watched=about["watched"])
        for place in range(about["chunks"]):
            partial = work(setting, given["parameters"], about["round"], given[f"{place}/ids"])
            arrays |= {f"{place}/{name}": getattr(partial, name) for name in ("total", *EACH)}
            arrays[f"{place}/draws"] = np.array([partial.draws])
    except Exception:
        return pack({}, {"outcome": "raised", "text": traceback.format_exc()})
    return pack(arrays, {"outcome": "partials", "chunks": about["chunks"]})


def read_partials(answer: bytes, chunks: int) -> list[Partial]:
    """The Partial of each chunk; WorkFailed if the work raised, NodeFailure if it was lost or part of it is missing."""
    arrays, about = unpack(answer)
    if about["outcome"] == "raised":
        raise WorkFailed(about["text"])
    if about["outcome"] != "partials" or about["chunks"] != chunks:
        raise NodeFailure(about.get("text") or f"{about['chunks']} partial sums came back for {chunks} chunks")
    found = []
    for place in range(chunks):
        each = {name: arrays[f"{place}/{name}"] for name in ("total", *EACH)}
        found.append(Partial(**each, draws=int(arrays[f"{place}/draws"].item())))
    return found
