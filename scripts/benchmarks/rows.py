"""The rows P1 to P12: what is compared with what, and the target.

A value is the ratio of the two sides' medians, where not said otherwise; its spread is the smallest and the largest
ratio of two turns that followed each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from benchmarks.conditions import Conditions, program
from benchmarks.peers import Missing
from benchmarks.sides import Side

Answers = list[dict[str, float]]


@dataclass(frozen=True)
class Target:
    """What is measured, and the bound it is to keep: `sign` is >= or <=."""

    what: str
    sign: str
    bound: float
    unit: str

    def met(self, value: float) -> bool:
        return value >= self.bound if self.sign == ">=" else value <= self.bound


@dataclass(frozen=True)
class Measured:
    """A value in the unit of its target, its spread, the rates it comes from by side, and what to say about it."""

    value: float
    spread: tuple[float, float]
    rates: dict[str, list[float]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A row, with one measured value for each of its targets. `measure` raises Missing if it cannot be measured."""

    targets: tuple[Target, ...]
    measure: Callable[[Conditions], list[Measured]]


def ratio(
    a: tuple[str, Answers], b: tuple[str, Answers], factor: float = 1.0, notes: list[str] | None = None
) -> Measured:
    """a over b, times `factor`."""
    rates = {name: [answer["rate"] for answer in answers] for name, answers in (a, b)}
    over, under = rates.values()
    pairs = [factor * x / y for x, y in zip(over, under, strict=True)]
    return Measured(factor * median(over) / median(under), (min(pairs), max(pairs)), rates, tuple(notes or ()))


def ours(c: Conditions, kind: str, mechanism: str, users: int, *more: str) -> Side:
    """Our side of the fixed workload."""
    return Side("fedacdp", "ours", (kind, mechanism, users, *c.chunked(), *more))


def against_pfl(kind: str, full: int) -> Callable[[Conditions], list[Measured]]:
    """A round of the same users by both."""

    def measure(c: Conditions) -> list[Measured]:
        python = c.peers.pfl_python()
        users = c.size(full, 16)
        mine, theirs = c.interleaved(ours(c, kind, "central", users), Side("pfl", "peer_pfl", (kind, users), python))
        return [ratio(("fedacdp", mine), ("pfl", theirs))]

    return measure


def against_opacus(kind: str, full: int, loop: int) -> Callable[[Conditions], list[Measured]]:
    """A round of ours against some of its users in a loop, which has no rounds: its users per second do not depend on
    how many there are."""

    def measure(c: Conditions) -> list[Measured]:
        peer = Side("opacus", "peer_opacus", (kind, c.size(loop, 2)))
        mine, theirs = c.interleaved(ours(c, kind, "local_dpsgd", c.size(full, 8)), peer)
        return [ratio(("fedacdp", mine), ("opacus", theirs))]

    return measure


def against_flower(c: Conditions) -> list[Measured]:
    """A round of ours on two nodes against one of plain Flower with as many users, each a node, on two actors."""
    users = c.size(1000, 8)
    experiment, notes = c.experiment(users, 50)
    mine, theirs = c.interleaved(
        program("fedacdp", "engine", experiment=experiment, execution=c.execution(engine="flower", nodes=2)),
        Side("flower", "peer_flower", ("mlp", users)),
        at_most=2,
    )
    return [ratio(("fedacdp", mine), ("flower", theirs), notes=notes)]


def outside_training(c: Conditions) -> list[Measured]:
    """Rounds with everything: central privacy, a tenth of the users planting a patch, evaluation in each round."""
    planting = {"name": "planting", "alpha": 0.1, "y_star": 8, "signal": "patch"}
    experiment, notes = c.experiment(c.size(1000, 20), 50, strategy=planting, training={"evaluate_every": 1})
    side = program("fedacdp", "share", experiment=experiment, execution=c.execution(engine="local"))
    [answers] = c.interleaved(side)
    shares = [100 * answer["rate"] for answer in answers]
    parts = [name for name in answers[0] if name not in ("rate", "peak_bytes", "products")]
    split = ", ".join(f"{part} {100 * median(a.get(part, 0.0) for a in answers):.1f} %" for part in parts)
    products = f"products for norms and sum, not in it: {100 * median(a['products'] for a in answers):.1f} %"
    about = (*notes, f"of it {split}", products)
    return [Measured(median(shares), (min(shares), max(shares)), {"outside": shares}, about)]


def scale(c: Conditions) -> list[Measured]:
    """The cost of a user in rounds of 100,000 over that in rounds of 1,000; peak memory of the former's process."""
    few, many = c.size(1_000, 20), c.size(100_000, 100)
    sides = []
    for users in (few, many):
        experiment, notes = c.experiment(users, 12)
        sides.append(program(str(users), "engine", experiment=experiment, execution=c.execution(engine="local")))
    small, large = c.interleaved(*sides, at_most=3)
    peaks = [answer["peak_bytes"] / 2**30 for answer in large]
    rates = {"peak_gib": peaks}
    return [
        ratio((f"{few} users a round", small), (f"{many} users a round", large), notes=notes),
        Measured(max(peaks), (min(peaks), max(peaks)), rates, tuple(notes)),
    ]


def two_nodes(c: Conditions) -> list[Measured]:
    """Users per second on two nodes over those on one."""
    experiment, notes = c.experiment(c.size(10_000, 20), 50)
    sides = [
        program(f"{n} nodes", "engine", experiment=experiment, execution=c.execution(engine="flower", nodes=n))
        for n in (2, 1)
    ]
    two, one = c.interleaved(*sides)
    return [ratio(("2 nodes", two), ("1 node", one), notes=notes)]


def small_runs(c: Conditions) -> list[Measured]:
    """The quickstart's base without privacy, so that no accounting, which costs both sides the same, hides the rest."""
    study = {
        "name": "small_runs",
        "question": "How long does a grid of small runs take?",
        "base": {
            "data": {"name": "digits", "users": 718},
            "model": {"name": "logistic"},
            "strategy": {"name": "planting", "alpha": 0.0, "y_star": 8, "signal": "patch"},
            "privacy": {"name": "none"},
            "training": {"rounds": c.size(30, 2), "sampling_prob": 0.2, "local_steps": 3, "local_lr": 0.5},
        },
        "grid": {"strategy.alpha": [0.0, 0.05, 0.1, 0.2], "seed": [0, 1, 2, 3]},
    }
    flower, here = c.interleaved(
        program("flower", "grid", study=study, execution=c.execution(engine="flower", nodes=2, jobs=16)),
        program("local", "grid", study=study, execution=c.execution(engine="local")),
    )
    return [ratio(("flower, 2 nodes, 16 runs in flight", flower), ("in process", here))]


def collusion(c: Conditions) -> list[Measured]:
    """Seconds for all points of the figure, population and test records drawn anew each time."""
    rows = c.size(1_000_000, 10_000)
    [answers] = c.interleaved(Side("fedacdp", "collusion", (rows,)))
    seconds = [52 / answer["rate"] for answer in answers]
    return [Measured(median(seconds), (min(seconds), max(seconds)), {"seconds": seconds})]


def gemm_share(c: Conditions) -> list[Measured]:
    """Useful FLOP/s of whole rounds of the mlp workload over the best FLOP/s of a matrix product, in percent."""
    users = c.size(1000, 16)
    mine, best = c.interleaved(ours(c, "mlp", "central", users), Side("gemm", "gemm", (users, *c.chunked())))
    flops = best[0]["flops_per_user"]
    note = f"{flops / 1e6:.2f} useful MFLOP a user; a product does {median(b['rate'] for b in best) / 1e9:.0f} GFLOP/s"
    return [ratio(("users per second", mine), ("FLOP/s", best), 100 * flops, [note])]


def gpu(c: Conditions) -> list[Measured]:
    """Users per second of whole rounds of the mlp workload; no ratio, because there is nothing beside it."""
    import torch

    if not torch.cuda.is_available():
        raise Missing("no GPU")
    [answers] = c.interleaved(ours(c, "mlp", "central", c.size(10_000, 100), "--device", "cuda"))
    rates = [answer["rate"] for answer in answers]
    name = torch.cuda.get_device_name()
    return [Measured(median(rates), (min(rates), max(rates)), {"users per second": rates}, (name,))]


ROWS = {
    "P1": Row((Target("mlp, central DP, against pfl", ">=", 30, "x"),), against_pfl("mlp", 1000)),
    "P2": Row((Target("cnn, central DP, against pfl", ">=", 5, "x"),), against_pfl("cnn", 512)),
    "P3": Row((Target("mlp, client-side DP-SGD, against Opacus", ">=", 40, "x"),), against_opacus("mlp", 1000, 100)),
    "P4": Row((Target("cnn, client-side DP-SGD, against Opacus", ">=", 7, "x"),), against_opacus("cnn", 256, 50)),
    "P5": Row((Target("1,000 users on 2 Flower nodes, against plain Flower", ">=", 200, "x"),), against_flower),
    "P6": Row((Target("share of a round outside local training", "<=", 20, "%"),), outside_training),
    "P7": Row(
        (
            Target("cost of a user, 100,000 a round over 1,000", "<=", 1.15, "x"),
            Target("peak memory, 100,000 users of 12 images", "<=", 2, "GiB"),
        ),
        scale,
    ),
    "P8": Row((Target("two Flower nodes over one, 10,000 users", ">=", 1.7, "x"),), two_nodes),
    "P9": Row((Target("16 small runs through Flower over in process", ">=", 0.7, "x"),), small_runs),
    "P10": Row((Target("the 52 points of Statistical Collusion, figure 1", "<=", 10, "s"),), collusion),
    "P11": Row((Target("mlp workload, share of the GEMM rate", ">=", 60, "%"),), gemm_share),
    "P12": Row((Target("mlp workload on one GPU, 10,000 users", ">=", 200_000, "users/s"),), gpu),
}
