"""Tasks are shared out among nodes, what waits travels together, and one lost node is never taken for an answer."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fedacdp.fleet import AHEAD, Fleet, Lost
from fedacdp.wire import pack, unpack


def task(*chunks: int) -> bytes:
    """Chunks of one user each; what is done with them is to be seen in the answer."""
    ids = {f"{place}/ids": np.array([user]) for place, user in enumerate(chunks)}
    return pack({"parameters": np.zeros(1)} | ids, {"chunks": len(chunks)})


def perform(content: bytes) -> bytes:
    arrays, about = unpack(content)
    found = {f"{place}/total": arrays[f"{place}/ids"] * 10 for place in range(about["chunks"])}
    return pack(found, {"outcome": "partials", "chunks": about["chunks"]})


def totals(answer: bytes) -> list[int]:
    arrays, about = unpack(answer)
    return [int(arrays[f"{place}/total"][0]) for place in range(about["chunks"])]


class Nodes:
    """Nodes that answer when told to; `sent` are the messages, in order."""

    def __init__(self, count: int, within: float = 30.0):
        self.sent: list[tuple[str, int, list[bytes]]] = []
        self.fleet = Fleet(range(count), self.send, within)
        self.pool = ThreadPoolExecutor(32)

    def send(self, node: int, contents: list[bytes]) -> str:
        self.sent.append((f"message {len(self.sent)}", node, contents))
        return self.sent[-1][0]

    def ask(self, *chunks: int):
        return self.pool.submit(self.fleet, task(*chunks))

    def messages(self, count: int) -> list[tuple[str, int, list[bytes]]]:
        """The first messages, when there are so many."""
        deadline = time.monotonic() + 10
        while len(self.sent) < count and time.monotonic() < deadline:
            time.sleep(0.001)
        return self.sent[:count]

    def answer(self, place: int) -> None:
        name, _, contents = self.messages(place + 1)[place]
        self.fleet.replied(name, [perform(content) for content in contents])


def test_a_task_is_shared_out_and_its_answers_are_joined_in_the_order_of_its_chunks():
    nodes = Nodes(2)
    asked = nodes.ask(*range(9))
    messages = nodes.messages(4)
    assert [node for _, node, _ in messages] == [0, 1, 0, 1]
    for place in (3, 0, 2, 1):  # in whatever order they come back
        nodes.answer(place)
    assert totals(asked.result(10)) == [10 * user for user in range(9)]
    assert nodes.fleet.names == []


def test_what_waits_for_a_node_travels_together():
    nodes = Nodes(1)
    asked = [nodes.ask(user) for user in range(AHEAD)]
    nodes.messages(AHEAD)
    asked += [nodes.ask(user) for user in range(AHEAD, 7)]
    deadline = time.monotonic() + 10
    while len(nodes.fleet._waiting) < 5 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert len(nodes.sent) == AHEAD  # a node has no more messages than that
    nodes.answer(0)
    assert [len(contents) for _, _, contents in nodes.messages(3)] == [1, 1, 5]
    nodes.answer(1)
    nodes.answer(2)
    assert sorted(totals(each.result(10))[0] for each in asked) == [10 * user for user in range(7)]


def test_many_threads_get_their_own_answers():
    nodes, stop = Nodes(3), threading.Event()

    def work() -> None:
        done = 0
        while not stop.is_set():
            if done < len(nodes.sent):
                nodes.answer(done)
                done += 1

    worker = threading.Thread(target=work)
    worker.start()
    asked = {user: nodes.ask(*range(user, user + 1 + user % 8)) for user in range(200)}
    for user, each in asked.items():
        assert totals(each.result(30)) == [10 * chunk for chunk in range(user, user + 1 + user % 8)]
    stop.set()
    worker.join()


def test_one_lost_node_wakes_everybody_up_and_nothing_is_answered_any_more():
    nodes = Nodes(2)
    asked = [nodes.ask(user) for user in range(9)]
    nodes.messages(4)
    nodes.fleet.lose("node 1 died")
    for each in [*asked, nodes.ask(3)]:
        with pytest.raises(Lost, match="node 1 died"):
            each.result(10)


def test_a_late_reply_and_an_answer_too_few_lose_the_fleet():
    nodes = Nodes(1, within=0.01)
    asked = nodes.ask(1)
    nodes.messages(1)
    time.sleep(0.05)
    assert nodes.fleet.names
    with pytest.raises(Lost, match="1 replies did not come within 0 s"):
        asked.result(10)
    nodes = Nodes(1)
    asked = nodes.ask(1)
    nodes.fleet.replied(nodes.messages(1)[0][0], [])
    with pytest.raises(Lost, match="0 answers came back to 1 parts"):
        asked.result(10)


def test_a_message_that_cannot_be_sent_loses_the_fleet():
    def refuse(node: int, contents: list[bytes]) -> str:
        raise OSError("no way there")

    with pytest.raises(Lost, match="no way there"):
        Fleet([0], refuse, 30.0)(task(1))
