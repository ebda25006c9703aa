"""Plain Flower simulation: one SuperNode per user, one CPU per Ray actor, two actors, FedAvg, fixed workload.

    python -m benchmarks.peer_flower mlp 1000      # model, users a round
A unit of work is a round. Ray is kept on loopback and has the settings and the number of CPUs that it has under our own
engine. Nothing else is changed: messages travel at Flower's own pace.
"""

import os
import secrets
import shutil
import sys
import tempfile
import traceback

from fedacdp.nodes import OWN_RAY, QUIET

os.environ.update(QUIET | OWN_RAY | {"RAY_AUTH_TOKEN": secrets.token_hex(32)})

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks import workload

ACTORS = 2
client, server = ClientApp(), ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    torch.set_num_threads(1)
    kind = str(message.content["config"]["kind"])
    net = workload.model(kind)
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    generator = torch.Generator().manual_seed(context.node_config["partition-id"])
    x = torch.randn(workload.EXAMPLES, 1, 28, 28, generator=generator)
    y = torch.randint(0, 10, (workload.EXAMPLES,), generator=generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=workload.LR)
    for first in range(0, workload.EXAMPLES, workload.BATCH):
        rows = slice(first, first + workload.BATCH)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    content = {
        "arrays": ArrayRecord(net.state_dict()),
        "metrics": MetricRecord({"num-examples": workload.EXAMPLES}),
    }
    return Message(content=RecordDict(content), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    from benchmarks.turns import Turns

    kind, count = sys.argv[1], int(sys.argv[2])
    turns, number = Turns(), 0
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=count, min_available_nodes=count)
    arrays = ArrayRecord(workload.model(kind).state_dict())
    while True:
        number += 1
        messages = strategy.configure_train(number, arrays, ConfigRecord({"kind": kind}), grid)
        arrays, _ = strategy.aggregate_train(number, grid.send_and_receive(messages, timeout=3600))
        if arrays is None:
            raise RuntimeError("no user of a round answered")
        if not turns.go_on(count):
            return


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="fb-", dir="/tmp") as folder:
        os.environ["FLWR_HOME"] = folder
        ray = {
            "address": "local",
            "num_cpus": ACTORS,
            "include_dashboard": False,
            "log_to_driver": False,
            "_temp_dir": folder,
            "_node_ip_address": "127.0.0.1",
        }
        options = {"init_args": ray, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
        try:
            run_simulation(server, client, int(sys.argv[2]), backend_config=options)
        except BaseException:  # the thread of the server would wait for its replies for an hour
            traceback.print_exc()
            sys.stderr.flush()
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(1)
