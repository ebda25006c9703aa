"""How well a platform ranks for its users what they rated: the evaluator's view, which no epsilon covers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from fedacdp import acting, metrics
from fedacdp.data.ratings import LIKED
from fedacdp.local import factors
from fedacdp.models.matrix_factorization import Factors
from fedacdp.setting import Setting
from fedacdp.surfaced import surfaced_hits

_TOGETHER = 2**18  # held-out ratings whose factors are in hand at once
_USERS = 256  # users whose ratings are


@dataclass(frozen=True)
class Served:
    """What each user got, (N,) each: how many of its held-out items it `liked`, how many `hits` it was shown among so
    many first, how many if nobody had left (`staying`), and by a ranking by item means for everybody (`impersonal`).
    `rmse` of all scores on held-out ratings."""

    liked: np.ndarray
    hits: np.ndarray
    staying: np.ndarray
    impersonal: np.ndarray
    rmse: float


def serve(setting: Setting, parameters: np.ndarray, round: int) -> Served:
    """Every user ranks its own held-out ratings after a round (`surfaced_hits`; liked are ratings of 4 and more).

    A user is shown the model's scores, with the vector that it solves for on its own training ratings; a member who
    sends nothing in this round is shown the item means of the ratings that are left, the mean of all of them for an
    item without any, and one who has left the platform gets no hits. The item means are exact, and known to the
    evaluator only: they are no part of what a mechanism protects. Scores that tie are told apart by one shuffle for all
    runs of a seed.
    """
    net, federation, key = setting.net, setting.federation, setting.key
    assert isinstance(net, Factors)
    assert federation.test_owner is not None
    users, schema = len(federation.sizes), federation.schema
    vector = np.empty((users, net.factors + 1))
    silent, gone = np.zeros(users, bool), np.zeros(users, bool)
    count, total = np.zeros(schema.items), np.zeros(schema.items)
    for first in range(0, users, _USERS):
        ids = np.arange(first, min(first + _USERS, users))
        block = federation.users(ids, setting.member[ids])
        own = factors.ratings(block)
        vector[ids] = factors.vectors(net, parameters, own)
        silent[ids], gone[ids] = acting.absent(setting.strategy, setting.collective, block, round, key)
        left = ~silent[ids][own.row]
        count += np.bincount(own.item[left], minlength=schema.items)
        total += np.bincount(own.item[left], own.rating[left], schema.items)
    usual = total.sum() / count.sum() if count.any() else (schema.scale[0] + schema.scale[-1]) / 2
    mean = np.where(count > 0, total / np.maximum(count, 1), usual)

    found, owner = net.items(parameters), federation.test_owner
    item, truth = federation.test.x[:, 0].astype(np.int64), schema.scale[federation.test.y]
    score = found.mean + found.bias[item] + vector[owner, 0]
    for first in range(0, len(item), _TOGETHER):
        some = slice(first, first + _TOGETHER)
        score[some] += np.einsum("nk,nk->n", found.factors[item[some]], vector[owner[some], 1:])
    shown = np.where(silent[owner], mean[item], score)
    shuffle, liked = key.fold("ties").rng().permutation(len(item)), truth >= LIKED
    hits, wanted = surfaced_hits(owner, shown, liked, shuffle, users)
    impersonal, _ = surfaced_hits(owner, mean[item], liked, shuffle, users)
    error = np.clip(shown, schema.scale[0], schema.scale[-1]) - truth
    return Served(wanted, np.where(gone, 0, hits), hits, impersonal, float(np.sqrt(np.mean(error**2))))


def parties(setting: Setting) -> dict[str, np.ndarray]:
    """Whose hits are told apart, (N,) bool each; only those with somebody in them."""
    found = acting.parties(setting.strategy, setting.member, setting.federation.group) | {"others": ~setting.member}
    return {name: who for name, who in found.items() if who.any()} if setting.member.any() else {}


def evaluate(setting: Setting, parameters: np.ndarray, round: int) -> list[metrics.Value]:
    """`rmse`: root mean squared error of the scores that users are shown, cut to the scale, over held-out ratings.
    `surfaced_hits` and `item_mean_hits`: hits / liked held-out items of all users, and of each party's: members,
    others, and of the others those who want the same and those who do not. And `success`, see the strategy."""
    served = serve(setting, parameters, round)
    groups = {"all": np.ones(len(served.liked), bool)} | parties(setting)
    values = [("rmse", "all", served.rmse)]
    for metric, hits in (("surfaced_hits", served.hits), ("item_mean_hits", served.impersonal)):
        for group, who in groups.items():
            if served.liked[who].any():
                values.append((metric, group, float(hits[who].sum() / served.liked[who].sum())))
    everybody = max(1, int(served.liked.sum()))
    shares = {"all": served.hits.sum() / everybody, "staying": served.staying.sum() / everybody}
    return values + metrics.successes(setting.strategy.ranked({name: float(share) for name, share in shares.items()}))


def by_user(setting: Setting, parameters: np.ndarray, round: int) -> pd.DataFrame:
    """One row per user: `liked`, `hits`, `impersonal` as in `Served`, and whether it is a member, a free-rider or a
    bystander."""
    served = serve(setting, parameters, round)
    party = np.full(len(setting.member), "bystanders", dtype=object)
    for name, who in parties(setting).items():
        if name != "others":
            party[who] = name
    return pd.DataFrame({"liked": served.liked, "hits": served.hits, "impersonal": served.impersonal, "party": party})
