"""All nodes of an engine as one function that does a task: what waits is sent as soon as a node has room for it.

A message costs the engine milliseconds, whatever is in it. So a node has at most two messages at a time, one at work
and one to go on with, and what comes in meanwhile, from many runs in flight, travels together in the next.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from fedacdp.sharing import joined, shares

AHEAD = 2
"""Messages that a node may have."""


class Lost(Exception):
    """A node failed, died or did not answer in time: the engine would go on without it, we do not."""


class _Part:
    """A part of a task, and its answer when there is one."""

    def __init__(self, content: bytes):
        self.content, self.answer, self.ended = content, b"", threading.Event()


class Fleet:
    """Does tasks on nodes. Threads may call it at the same time.

    `send(node, contents)` sends a message and returns its name, under which `replied` must be called with the answers.
    One node lost, one error or one reply later than `reply_within` seconds loses the fleet: it answers no more.
    """

    def __init__(self, nodes: Sequence[int], send: Callable[[int, list[bytes]], str], reply_within: float) -> None:
        self._send, self._reply_within, self._lost = send, reply_within, ""
        self._busy = dict.fromkeys(nodes, 0)  # messages that each node has
        self._waiting: deque[_Part] = deque()
        self._sent: dict[str, tuple[int, list[_Part], float]] = {}
        self._lock = threading.RLock()

    def __call__(self, task: bytes) -> bytes:
        """Share the chunks of a task among the nodes and join their answers in the order of the chunks.

        An answer that says that its work raised is the answer. Lost if a node is.
        """
        parts = [_Part(share) for share in shares(task, AHEAD * len(self._busy))]
        with self._lock:
            self._waiting.extend(parts)
            self._send_what_waits()
        for part in parts:
            part.ended.wait()
            if self._lost:
                raise Lost(self._lost)
        return joined([part.answer for part in parts])

    @property
    def names(self) -> list[str]:
        """The messages that wait for a reply; a reply that is late loses the fleet."""
        with self._lock:
            if any(time.monotonic() > deadline for _, _, deadline in self._sent.values()):
                self.lose(f"{len(self._sent)} replies did not come within {self._reply_within:.0f} s")
            return list(self._sent)

    def replied(self, name: str, answers: list[bytes]) -> None:
        """The answers to a message, in the order of its contents."""
        with self._lock:
            node, parts, _ = self._sent[name]
            if len(answers) != len(parts):
                self.lose(f"{len(answers)} answers came back to {len(parts)} parts of tasks")
            for part, answer in zip(parts, answers, strict=False):
                part.answer = answer
                part.ended.set()
            del self._sent[name]
            self._busy[node] -= 1
            self._send_what_waits()

    def lose(self, reason: str) -> None:
        """Wake everybody up: a fleet that lost a node answers no more."""
        with self._lock:
            self._lost = self._lost or reason
            for part in [*self._waiting, *(part for _, parts, _ in self._sent.values() for part in parts)]:
                part.ended.set()

    @property
    def lost(self) -> bool:
        return bool(self._lost)

    def _send_what_waits(self) -> None:
        if self._lost:
            self.lose(self._lost)
        while not self._lost and self._waiting and (room := sum(AHEAD - busy for busy in self._busy.values())):
            node = min(self._busy, key=lambda node: self._busy[node])
            parts = [self._waiting.popleft() for _ in range(-(-len(self._waiting) // room))]
            try:
                name = self._send(node, [part.content for part in parts])
            except Exception as error:
                self._waiting.extend(parts)
                self.lose(str(error) or repr(error))
                return
            self._sent[name] = (node, parts, time.monotonic() + self._reply_within)
            self._busy[node] += 1
