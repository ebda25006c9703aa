"""fedacdp on Flower: a ServerApp that hands rounds to nodes, a ClientApp that is a node, and the process hosting both.

A node (Flower SuperNode) stands for many users: one message carries the global parameters and whole chunks of user ids,
its reply one sum per chunk. Which process serves a node changes from message to message, so what a process keeps is
kept per experiment, never per node. `flwr run .` uses `server` and `client`; `fedacdp run` uses `host`, in a child.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection, Listener
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.server.superlink.fleet.vce import vce_api
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from fedacdp.wire import pack, unpack

POLL = 0.01  # seconds between looks for replies, where nothing wakes us up earlier
START = 300.0  # seconds that the nodes may take to register
PUSHED, REPLIED = threading.Event(), threading.Event()  # messages wait to be carried to a node, or back
client = ClientApp()
server = ServerApp()


class Lost(Exception):
    """A node failed, died or did not answer in time: Flower would go on without it, we do not."""


@client.query()
def greet(message: Message, context: Context) -> Message:
    """Say how many nodes there are."""
    return Message(_record(int(context.node_config["num-partitions"]).to_bytes(4, "big")), reply_to=message)


@client.train()
def train(message: Message, context: Context) -> Message:
    """Do the task in the message."""
    from fedacdp.tasks import perform  # here, because the process that hosts Flower needs no torch

    return Message(_record(perform(_bytes(message.content))), reply_to=message)


class Fleet:
    """All nodes of a grid, as one function that does a task. Threads may call it at the same time."""

    def __init__(self, grid: Grid, reply_within: float = 3600.0) -> None:
        """Wait until all nodes are registered: Flower starts the app first, and a node knows how many there are."""
        self._grid, self._reply_within, self._turns, self._lost = grid, reply_within, itertools.count(), ""
        self._inboxes: dict[str, queue.SimpleQueue[Message | None]] = {}  # of the messages that wait for a reply
        threading.Thread(target=self._collect, daemon=True).start()
        self._nodes = self._registered(1)
        [reply] = self._ask([Message(RecordDict(), dst_node_id=self._nodes[0], message_type="query")], START)
        self._nodes = self._registered(int.from_bytes(reply, "big"))

    def __call__(self, task: bytes) -> bytes:
        """Share the chunks of a task among the nodes and join their answers in the order of the chunks.

        An answer that says that its work raised is the answer. Lost if a node is.
        """
        arrays, about = unpack(task)
        chunks, turn, messages = about["chunks"], next(self._turns), []
        parts = min(chunks, len(self._nodes))
        for part in range(parts):
            mine = range(chunks * part // parts, chunks * (part + 1) // parts)
            ids = {f"{place}/ids": arrays[f"{number}/ids"] for place, number in enumerate(mine)}
            content = _record(pack({"parameters": arrays["parameters"]} | ids, about | {"chunks": len(mine)}))
            node = self._nodes[(turn + part) % len(self._nodes)]
            messages.append(Message(content, dst_node_id=node, message_type="train", ttl=self._reply_within + 60))
        return _joined(self._ask(messages, self._reply_within))

    def _registered(self, number: int) -> list[int]:
        deadline = time.monotonic() + START
        while len(nodes := sorted(self._grid.get_node_ids())) < number:
            if time.monotonic() > deadline:
                raise Lost(f"{len(nodes)} of {number} nodes registered within {START:.0f} s")
            time.sleep(POLL)
        return nodes

    def _ask(self, messages: list[Message], within: float) -> list[bytes]:
        """Send the messages; their replies in the same order. One error, or one reply too late, loses the fleet."""
        inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        ids = list(self._grid.push_messages(messages))
        self._inboxes.update(dict.fromkeys(ids, inbox))
        PUSHED.set()
        if len(ids) < len(messages):
            self._lose("Flower refused a message")
        replies: dict[str, bytes] = {}
        deadline = time.monotonic() + within
        while len(replies) < len(messages) and not self._lost:
            try:
                reply = inbox.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                self._lose(f"{len(messages) - len(replies)} replies did not come within {within:.0f} s")
                break
            if reply and reply.has_error():
                self._lose(f"a node failed: {reply.error.reason}")
            elif reply:
                replies[reply.metadata.reply_to_message_id] = _bytes(reply.content)
        if self._lost:
            raise Lost(self._lost)
        return [replies[i] for i in ids]

    def _collect(self) -> None:
        """Bring replies to those who wait. One thread looks for all, or many runs in flight would slow Flower down."""
        while not self._lost:
            REPLIED.wait(POLL)
            REPLIED.clear()
            try:
                for reply in self._grid.pull_messages(list(self._inboxes)):
                    self._inboxes.pop(reply.metadata.reply_to_message_id).put(reply)
            except Exception:
                self._lose(traceback.format_exc())

    def _lose(self, reason: str) -> None:
        """Wake everybody up: a fleet that lost a node answers no more."""
        self._lost = self._lost or reason
        for inbox in list(self._inboxes.values()):
            inbox.put(None)


def _joined(answers: list[bytes]) -> bytes:
    """The answers to the parts of a task as one; the first that raised stands for all."""
    arrays: dict[str, np.ndarray] = {}
    chunks = 0
    for answer in answers:
        found, about = unpack(answer)
        if about["outcome"] != "partials":
            return answer
        for name, array in found.items():
            place, _, what = name.partition("/")
            arrays[f"{chunks + int(place)}/{what}"] = array
        chunks += about["chunks"]
    return pack(arrays, {"outcome": "partials", "chunks": chunks})


def _record(content: bytes) -> RecordDict:
    return RecordDict({"content": ConfigRecord({"bytes": content})})


def _bytes(record: RecordDict) -> bytes:
    content = record.config_records["content"]["bytes"]
    assert isinstance(content, bytes)
    return content


def _deliver_at_once() -> None:
    """Replace the two threads of Flower 1.41 that carry messages by ones that wake up when there is something to carry.

    Flower's own move one message per node ten times a second: an empty round takes 100 ms instead of 6, and two nodes
    see 20 messages a second, however many runs are in flight. Where Flower has changed, its own pace remains.
    """

    def add_messages_to_queue(state: Any, inbound: Any, nodes_mapping: dict[int, int], f_stop: threading.Event) -> None:
        while not f_stop.is_set():
            PUSHED.wait(0.1)
            PUSHED.clear()
            for node in nodes_mapping:
                for message in state.get_message_ins(node_id=node, limit=None):
                    inbound.put(message)

    def put_message_into_state(state: Any, outbound: Any, f_stop: threading.Event) -> None:
        while not f_stop.is_set():
            with contextlib.suppress(queue.Empty):
                state.store_message_res(outbound.get(timeout=0.1))
                REPLIED.set()

    for function in (add_messages_to_queue, put_message_into_state):
        if hasattr(vce_api, function.__name__):
            setattr(vce_api, function.__name__, function)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """`flwr run .`: run the study that the run configuration names, with this grid's nodes."""
    from fedacdp.study import run_in_app

    run_in_app({name: str(value) for name, value in context.run_config.items()}, Fleet(grid))


def host() -> None:
    """Host Flower and Ray for `nodes.nodes`, until killed. Options are JSON in the first argument."""
    options: dict[str, Any] = json.loads(sys.argv[1])
    folder = str(options["folder"])
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    _deliver_at_once()
    app = ServerApp()

    @app.main()
    def serve(grid: Grid, context: Context) -> None:
        fleet = Fleet(grid, options["reply_within"])
        listener = Listener(f"{folder}/socket", "AF_UNIX", backlog=128)
        while True:
            threading.Thread(target=_answer, args=(listener.accept(), fleet), daemon=True).start()

    ray = {
        "address": "local",
        "num_cpus": options["nodes"],
        "num_gpus": options["gpus"],
        "include_dashboard": False,
        "log_to_driver": False,
        "object_store_memory": 256 * 2**20,
        "_temp_dir": folder,
        "_node_ip_address": "127.0.0.1",
    }
    resources = {"num_cpus": 1, "num_gpus": options["gpus_per_node"]}
    try:
        run_simulation(app, client, options["nodes"], backend_config={"init_args": ray, "client_resources": resources})
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(1)  # threads of Flower may still wait for a reply that will never come


def _answer(connection: Connection, fleet: Fleet) -> None:
    """Serve one thread of the parent."""
    while True:
        try:
            task = connection.recv_bytes()
        except EOFError:
            return
        try:
            answer = fleet(task)
        except Exception as error:
            answer = pack({}, {"outcome": "lost", "text": str(error) or traceback.format_exc()})
        connection.send_bytes(answer)


def _end_with_parent(folder: str) -> None:
    """Standard input ends when the parent dies, whatever killed it: end this process group and remove the folder."""
    sys.stdin.buffer.read()
    subprocess.Popen(["/bin/sh", "-c", 'sleep 1; rm -rf "$0"', folder], start_new_session=True)
    os.killpg(0, signal.SIGKILL)
