"""How collectives act on a block of users: who follows what, with which records, and with which updates."""

from __future__ import annotations

import numpy as np
import torch

from fedacdp.keys import Key
from fedacdp.local.updates import Stacked, Updates
from fedacdp.strategy import Strategy
from fedacdp.users import Users


def parties(strategy: Strategy, member: np.ndarray, group: np.ndarray) -> dict[str, np.ndarray]:
    """Whose utility is told apart, (N,) bool each: members; free-riders, who want the same but are no members;
    bystanders, the others."""
    wanting = strategy.wanting(group)
    return {"members": member, "free_riders": wanting & ~member, "bystanders": ~wanting & ~member}


def plays(
    strategy: Strategy, collective: np.ndarray, users: Users, round: int, key: Key
) -> list[tuple[Strategy, np.ndarray]]:
    """What is followed in this round, and by which of these users, (U,) bool, disjoint; nothing that nobody follows.
    `collective` (N,): every user's, as assigned; `key`: the root."""
    found = strategy.plays(users, collective[users.ids], round, key.fold("acts", round))
    return [(followed, who) for followed, who in found if who.any()]


def absent(
    strategy: Strategy, collective: np.ndarray, users: Users, round: int, key: Key
) -> tuple[np.ndarray, np.ndarray]:
    """Which of these users send nothing in this round, and which of them do not use the platform either, (U,) bool."""
    silent, gone = np.zeros(len(users), dtype=bool), np.zeros(len(users), dtype=bool)
    below = key.fold("strategy", round).fold("participates")
    for followed, who in plays(strategy, collective, users, round, key):
        silent[who] = ~followed.participates(users.rows(who), round, below)
        gone[who] = silent[who] & followed.leaves
    return silent, gone


def act(strategy: Strategy, collective: np.ndarray, users: Users, round: int, key: Key) -> tuple[Users, np.ndarray]:
    """The users that send an update in this round with the records they train on, and which of them follow a
    strategy, (U',) bool. What members change is changed in the block, which belongs to the caller."""
    acting, sends = np.zeros(len(users), dtype=bool), np.ones(len(users), dtype=bool)
    below = key.fold("strategy", round)
    for followed, who in plays(strategy, collective, users, round, key):
        acting |= who
        members = users.rows(who)
        sends[who] = followed.participates(members, round, below.fold("participates"))
        changed = followed.data(members, round, below.fold("data"))
        if not np.array_equal(changed.ids, members.ids) or changed.x.shape != members.x.shape:
            raise ValueError(f"strategy {followed.name!r}: data() must return the same users with as many record slots")
        if changed is not members:
            users.x[who], users.y[who], users.mask[who] = changed.x, changed.y, changed.mask
    return (users, acting) if sends.all() else (users.rows(sends), acting[sends])


def send(
    strategy: Strategy,
    collective: np.ndarray,
    users: Users,
    round: int,
    key: Key,
    norms: np.ndarray,
    factors: np.ndarray,
    clip: float | np.ndarray,
    report_norm: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The factor on each update (U,), and who adds noise of its own, (U,) bool, after members have dealt with the
    privacy protocol as they agreed. `factors` (U,) is what the mechanism asks for under the clip norm `clip`, of all or
    (U,) of each, `norms` (U,) those of the updates, `report_norm` that of an honest message with its noise."""
    factors, noisy = factors.copy(), np.ones(len(users), dtype=bool)
    if strategy.protocols == {"compliant"}:
        return factors, noisy
    for followed, who in plays(strategy, collective, users, round, key):
        noisy[who] = followed.protocol in ("compliant", "fills_clip")
        if followed.protocol in ("fills_clip", "noise_as_signal"):
            norm = np.broadcast_to(clip if followed.protocol == "fills_clip" else report_norm, len(users))
            scaled = who & (norms > 0) & (factors > 0)  # what is not finite stays out, and nothing has no direction
            factors[scaled] = norm[scaled] / norms[scaled]
    return factors, noisy


def edit(
    strategy: Strategy,
    collective: np.ndarray,
    model: torch.Tensor,
    updates: Updates,
    users: Users,
    round: int,
    key: Key,
) -> Updates:
    """The updates of these users after those who follow a strategy that edits updates have done so. `model` (P,)."""
    editing = [pair for pair in plays(strategy, collective, users, round, key) if pair[0].edits_updates]
    if not editing:
        return updates
    rows, start = updates.stack().clone(), model.cpu().numpy()
    for followed, who in editing:
        chosen = torch.from_numpy(who).to(rows.device)
        own = rows[chosen].cpu().numpy()
        edited = followed.update_at(start, own, users.rows(who), round, key.fold("update", round))
        rows[chosen] = torch.from_numpy(edited).to(rows)
    return Stacked(rows, updates.draws)
