"""A program that is one side of a comparison: it gets ready, then works whenever it is told to, and says how fast.

Each line on standard input is a turn, each turn is answered by a line of JSON; at the end of the input the program
ends. Needs nothing but the standard library, because peers have environments of their own.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable

LEAST = float(os.environ.get("BENCH_LEAST_SECONDS", "1"))
# Not standard output, where anything may be printed, unless somebody tries a program by hand.
ANSWERS = int(os.environ.get("BENCH_ANSWERS", "1"))


class Turns:
    """Counts what is done in a turn and the seconds it took, after `warm` units of work that do not count.

    A turn is over when at least LEAST seconds of it are done.
    """

    def __init__(self, warm: int = 1):
        self._warm = warm
        self._done, self._spent, self._began = 0.0, 0.0, time.perf_counter()

    def go_on(self, done: float) -> bool:
        """To be called after every unit of work, of which `done` were done; False when there are no more turns."""
        now = time.perf_counter()
        if self._warm:
            self._warm -= 1
            if self._warm == 0:
                return self._next({"ready": True})
        else:
            self._done, self._spent = self._done + done, self._spent + now - self._began
            if self._spent >= LEAST:
                return self._next({"rate": self._done / self._spent, "done": self._done, "seconds": self._spent})
        self._began = time.perf_counter()
        return True

    def _next(self, answer: dict[str, float]) -> bool:
        going = answered(answer)
        self._done, self._spent, self._began = 0.0, 0.0, time.perf_counter()
        return going


def take_turns(once: Callable[[], float], warm: int = 1) -> None:
    """Do `once`, which says how much it did, turn after turn."""
    turns = Turns(warm)
    while turns.go_on(once()):
        pass


def answered(answer: dict[str, float]) -> bool:
    """Give an answer and wait for the next turn; False when there are no more. Adds the largest memory in use so far,
    in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    os.write(ANSWERS, (json.dumps(answer | {"peak_bytes": peak}) + "\n").encode())
    return bool(sys.stdin.readline())
