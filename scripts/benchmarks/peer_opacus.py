"""Client-side DP-SGD written the usual way: one Opacus DPOptimizer loop per user, fixed workload, one thread.

    python -m benchmarks.peer_opacus mlp 60      # model, users a turn
Noise multiplier 1.0, per-example clip 1.0, expected batch 10. No clipping or sum of updates: that part is ours alone.
"""

import sys

import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn

from benchmarks import workload
from benchmarks.turns import take_turns


def main() -> None:
    kind, count = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    x, y = workload.users(count)
    net = GradSampleModule(workload.model(kind))
    start_state = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = DPOptimizer(
        torch.optim.SGD(net.parameters(), lr=workload.LR),
        noise_multiplier=1.0,
        max_grad_norm=workload.CLIP,
        expected_batch_size=workload.BATCH,
    )

    def train(user: int) -> None:
        net.load_state_dict(start_state)
        for first in range(0, workload.EXAMPLES, workload.BATCH):
            rows = slice(first, first + workload.BATCH)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[user, rows]), y[user, rows]).backward()
            optimizer.step()

    def everybody() -> int:
        for user in range(count):
            train(user)
        return count

    take_turns(everybody)


if __name__ == "__main__":
    main()
