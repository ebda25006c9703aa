"""fedacdp on Flower: a ServerApp that hands rounds to nodes, a ClientApp that is a node, and the process hosting both.

A node (Flower SuperNode) stands for many users: one message carries the global parameters and whole chunks of user ids,
its reply one sum per chunk. Which process serves a node changes from message to message, so what a process keeps is
kept per experiment, never per node. `flwr run .` uses `server` and `client`; `fedacdp run` uses `host`, in a child.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
import time
import traceback
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.server.superlink.fleet.vce import vce_api
from flwr.server.superlink.fleet.vce.backend import raybackend
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from flwr.simulation.ray_transport import ray_actor
from ray.util import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fedacdp import child
from fedacdp.fleet import Fleet, Lost

POLL = 0.01  # seconds between looks for replies, where nothing wakes us up earlier
START = 300.0  # seconds that the nodes may take to register
JOIN = 60.0  # seconds that a Ray cluster may take to let us in; Ray itself tries ten times as long
ROOM = 60.0  # seconds that a Ray cluster may take to free what the nodes need
PUSHED, REPLIED = threading.Event(), threading.Event()  # messages wait to be carried to a node, or back
client = ClientApp()
server = ServerApp()


@client.query()
def greet(message: Message, context: Context) -> Message:
    """Say how many nodes there are."""
    return Message(_record(int(context.node_config["num-partitions"]).to_bytes(4, "big")), reply_to=message)


@client.train()
def train(message: Message, context: Context) -> Message:
    """Do the tasks in the message."""
    from fedacdp.tasks import perform  # here, because the process that hosts Flower needs no torch

    return Message(_record(*map(perform, _contents(message.content))), reply_to=message)


def fleet_of(grid: Grid, reply_within: float = 3600.0) -> Fleet:
    """All nodes of a grid. Waits until they are registered: Flower starts the app first, and a node knows how many
    there are. Lost if they are not."""
    first = _registered(grid, 1)[0]
    [name] = grid.push_messages([Message(RecordDict(), dst_node_id=first, message_type="query")])
    PUSHED.set()
    deadline = time.monotonic() + START
    while not (replies := list(grid.pull_messages([name]))):
        if time.monotonic() > deadline:
            raise Lost(f"no node answered within {START:.0f} s")
        time.sleep(POLL)
    if replies[0].has_error():
        raise Lost(f"a node failed: {replies[0].error.reason}")
    nodes = _registered(grid, int.from_bytes(_contents(replies[0].content)[0], "big"))

    def send(node: int, contents: list[bytes]) -> str:
        message = Message(_record(*contents), dst_node_id=node, message_type="train", ttl=reply_within + 60)
        names = list(grid.push_messages([message]))
        if not names:
            raise Lost("Flower refused a message")
        PUSHED.set()
        return names[0]

    fleet = Fleet(nodes, send, reply_within)
    threading.Thread(target=_collect, args=(grid, fleet), daemon=True).start()
    return fleet


def _registered(grid: Grid, number: int) -> list[int]:
    deadline = time.monotonic() + START
    while len(nodes := sorted(grid.get_node_ids())) < number:
        if time.monotonic() > deadline:
            raise Lost(f"{len(nodes)} of {number} nodes registered within {START:.0f} s")
        time.sleep(POLL)
    return nodes


def _collect(grid: Grid, fleet: Fleet) -> None:
    """Bring replies to those who wait. One thread looks for all, or many runs in flight would slow Flower down."""
    while not fleet.lost:
        REPLIED.wait(POLL)
        REPLIED.clear()
        try:
            for reply in grid.pull_messages(fleet.names):
                if reply.has_error():
                    fleet.lose(f"a node failed: {reply.error.reason}")
                else:
                    fleet.replied(reply.metadata.reply_to_message_id, _contents(reply.content))
        except Exception:
            fleet.lose(traceback.format_exc())


def _record(*contents: bytes) -> RecordDict:
    return RecordDict({"contents": ConfigRecord({str(place): content for place, content in enumerate(contents)})})


def _contents(record: RecordDict) -> list[bytes]:
    contents = record.config_records["contents"]
    found = [contents[str(place)] for place in range(len(contents))]
    assert all(isinstance(content, bytes) for content in found)
    return found  # type: ignore[return-value]


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

    run_in_app({name: str(value) for name, value in context.run_config.items()}, fleet_of(grid))


def host() -> None:
    """Host Flower for `nodes.nodes`, on a Ray of its own or on a cluster, until killed. Options are JSON in the first
    argument."""
    options: dict[str, Any] = json.loads(sys.argv[1])
    folder = Path(options["folder"])
    threading.Thread(target=child.end_with_parent, args=(folder,), daemon=True).start()
    _deliver_at_once()
    app = ServerApp()

    @app.main()
    def serve(grid: Grid, context: Context) -> None:
        child.serve(folder, fleet_of(grid, options["reply_within"]))

    needs = {"num_cpus": 1, "num_gpus": options["gpus_per_node"]}
    try:
        if options["ray"]["address"] != "local":
            _connect(options["ray"], folder)
            _reserve(options["nodes"], needs, folder)
        run_simulation(
            app, client, options["nodes"], backend_config={"init_args": options["ray"], "client_resources": needs}
        )
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(1)  # threads of Flower may still wait for a reply that will never come


def _connect(options: dict[str, Any], folder: Path) -> None:
    """Connect to a running Ray cluster before Flower does, which would not say why it cannot."""
    failed = f"--ray-address = {options['address']!r}: no Ray cluster there lets us in (is RAY_AUTH_TOKEN its token?)"
    late = threading.Timer(JOIN, child.refuse, (folder, failed))
    late.start()
    try:
        ray.init(**options)
    except Exception as error:
        child.refuse(folder, f"{failed}: {error}")
    late.cancel()


def _reserve(nodes: int, needs: dict[str, float], folder: Path) -> None:
    """Reserve what the nodes need in a Ray cluster, spread over its machines, and have Flower keep to it.

    Flower would start an actor on every CPU of the cluster, and wait without a word for those that others use. What is
    reserved is freed, and the actors end, as soon as this process is gone.
    """
    bundle = {name: amount for name, amount in (("CPU", 1.0), ("GPU", needs["num_gpus"])) if amount}
    has = ray.cluster_resources()
    fits = all(nodes * amount <= has.get(name, 0) for name, amount in bundle.items())
    group = placement_group([bundle] * nodes, strategy="SPREAD") if fits else None
    if group is None or not group.wait(ROOM):
        free = ray.available_resources()
        each = " and ".join(f"{amount:g} {name}" for name, amount in bundle.items())
        told = " and ".join(f"{has.get(name, 0):g} {name}s, {free.get(name, 0):g} of them free" for name in bundle)
        child.refuse(folder, f"--nodes = {nodes}: each needs {each}; the Ray cluster has {told}")
    actor: Any = ray_actor.ClientAppActor
    placed = partial(actor.options, scheduling_strategy=PlacementGroupSchedulingStrategy(group))
    vars(raybackend)["ClientAppActor"] = SimpleNamespace(options=placed)
    vars(ray_actor)["pool_size_from_resources"] = lambda _: nodes
