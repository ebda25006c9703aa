"""The best float32 matrix product of this machine on one thread, and how much of it the mlp workload is.

    python -m benchmarks.gemm [USERS] [--chunk K]
`rate` is in FLOP/s: the best of torch.mm and, where torch has it, oneDNN's linear layer, on 2048^3 and on the shapes of
the workload. `flops_per_user` are the useful ones of the dual form.
"""

import argparse
import time
from collections.abc import Callable, Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import ours, workload
from benchmarks.turns import answered
from fedacdp.config import Execution
from fedacdp.rounds import compute_here, run

SIDE, REPEATS = 2048, 3
INPUTS, HIDDEN, CLASSES = 784, 64, 10


def useful_flops(gram: bool) -> int:
    """Floating point operations that the dual form of one user's local training needs, a multiplication and an addition
    counted as two; n examples, d inputs, h hidden units, k classes, S steps of B examples:

    - A W0^T 2 n d h, and c^T A 2 n d h;
    - if `gram`, K = A A^T, which is symmetric: n (n + 1) d;
    - K_i c at each step 2 B n h, and K c once for the norm 2 n n h;
    - the second layer's forward pass, backward pass and step, 2 B h k each.

    Everything else (activations, softmax, clipping, noise, copying, drawing batches) counts as nothing.
    """
    n, b = workload.EXAMPLES, workload.BATCH
    steps = n // b
    wide = 2 * (2 * n * INPUTS * HIDDEN) + (n * (n + 1) * INPUTS if gram else 0)
    return wide + steps * 2 * b * n * HIDDEN + 2 * n * n * HIDDEN + steps * 3 * (2 * b * HIDDEN * CLASSES)


class GramWatch(TorchDispatchMode):
    """Notices whether a matrix product gives (..., n, n) from inputs of d features: a user's Gram matrix."""

    seen = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        found = function(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found.shape[-2:] == (workload.EXAMPLES, workload.EXAMPLES):
            self.seen |= any(isinstance(given, torch.Tensor) and INPUTS in given.shape[-2:] for given in args)
        return found


def gram_every_round(users: int, execution: Execution) -> bool:
    """Whether the second round of the same users computes Gram matrices again; False where that cannot be seen, which
    makes the useful work smaller."""
    rounds = run(ours.setting("mlp", "central", users, execution), execution, compute_here)
    next(rounds)
    with GramWatch() as watch:
        next(rounds)
    return watch.seen


def products(rows: int) -> Iterator[tuple[int, Callable[[], torch.Tensor]]]:
    """FLOPs and function of each product: x (m, k) by w (n, k) transposed."""
    linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    records, hidden = torch.randn(rows, INPUTS), torch.randn(rows, HIDDEN)
    pairs = [
        (torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)),
        (records, torch.randn(HIDDEN, INPUTS)),
        (hidden.T.contiguous(), records.T.contiguous()),
        (records.T.contiguous(), hidden.T.contiguous()),
    ]
    for x, w in pairs:
        flops = 2 * x.shape[0] * x.shape[1] * w.shape[0]
        yield flops, lambda x=x, w=w: torch.mm(x, w.T)
        if linear is not None:
            yield flops, lambda x=x, w=w: linear(x, w, None, "none", [], "")


def best(kinds: list[tuple[int, Callable[[], torch.Tensor]]]) -> float:
    """FLOP/s of the fastest."""
    rates = []
    for flops, product in kinds:
        for _ in range(REPEATS):
            began = time.perf_counter()
            product()
            rates.append(flops / (time.perf_counter() - began))
    return max(rates)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("users", type=int)
    parser.add_argument("--chunk", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = {} if options.chunk is None else {"chunk": options.chunk}
    execution = Execution(engine="local", **chosen)
    flops = useful_flops(gram_every_round(options.users, execution))
    kinds = list(products(min(options.users, execution.chunk) * workload.EXAMPLES))
    best(kinds)
    going = answered({"ready": True})
    while going:
        going = answered({"rate": best(kinds), "flops_per_user": flops})


if __name__ == "__main__":
    main()
