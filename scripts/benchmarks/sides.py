"""Two sides in turns, A B A B: each a process of its own that waits, without work, while the other one is measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

SCRIPTS = Path(__file__).resolve().parent.parent
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)


class SideFailed(Exception):
    """A side ended before it answered; the text is the end of what it said."""


@dataclass(frozen=True)
class Side:
    """A program of this package, its arguments, and the Python that runs it."""

    name: str
    program: str
    arguments: tuple[Any, ...]
    python: str = sys.executable


class Started:
    """A side that is ready for turns."""

    def __init__(self, side: Side, process: subprocess.Popen[bytes], answers: TextIO, log: Path):
        self._side, self._process, self._answers, self._log = side, process, answers, log
        self._answer()

    def turn(self) -> dict[str, float]:
        """Let it work once; what it answers, `rate` among it."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the missing answer says why
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        line = self._answers.readline()
        if not line:
            said = self._log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            raise SideFailed(f"{self._side.name}: {said[-1]}\n" + "\n".join(said[-20:]))
        answer: dict[str, float] = json.loads(line)
        return answer


@contextmanager
def started(side: Side, least: float) -> Iterator[Started]:
    """Start a side in a process group of its own, with one thread and turns of at least `least` seconds, and end it
    afterwards with all it started."""
    reading, writing = os.pipe()
    environment = os.environ | ONE_THREAD | {"BENCH_LEAST_SECONDS": str(least), "BENCH_ANSWERS": str(writing)}
    path = (str(SCRIPTS), str(SCRIPTS.parent), os.environ.get("PYTHONPATH"))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    with tempfile.TemporaryDirectory(prefix="fedacdp-bench-") as folder:
        log = Path(folder) / "log"
        with log.open("w") as said:
            process = subprocess.Popen(
                [side.python, "-m", f"benchmarks.{side.program}", *map(str, side.arguments)],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=said,
                env=environment,
                pass_fds=(writing,),
                start_new_session=True,
            )
        os.close(writing)
        try:
            with open(reading) as answers:
                yield Started(side, process, answers, log)
        finally:
            _end(process)


def interleaved(sides: list[Side], repeats: int, least: float) -> list[list[dict[str, float]]]:
    """The answers of each side, taken in turns: one of each, `repeats` times over."""
    with ExitStack() as stack:
        ready = [stack.enter_context(started(side, least)) for side in sides]
        rounds = [[side.turn() for side in ready] for _ in range(repeats)]
    return [list(answers) for answers in zip(*rounds, strict=True)]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close its input, which ends it; kill its group where that is not enough."""
    assert process.stdin is not None
    with suppress(BrokenPipeError, subprocess.TimeoutExpired):
        process.stdin.close()
        process.wait(timeout=30)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
