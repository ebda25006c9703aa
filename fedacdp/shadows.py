"""Whose data the last model was trained on: the likelihood-ratio attack on users, with shadow runs.

Carlini et al. 2021, "Membership inference attacks from first principles" (arXiv 2112.03570), for users. Members of the
collective on their true data, members on what they send, and bystanders are told apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional as F

from fedacdp import acting
from fedacdp.anonymity import Roc
from fedacdp.config import Execution, Experiment
from fedacdp.findings import Ceiling, Finding, told
from fedacdp.models.base import Net
from fedacdp.privacy import accounting
from fedacdp.privacy.accounting import Gaussians
from fedacdp.privacy.base import Noisy
from fedacdp.rounds import Diverged, compute_here, first_state, run
from fedacdp.setting import Setting
from fedacdp.users import Users

LEAST = 16
"""Shadow runs without which nothing is told: seven with and seven without a person to judge another run by."""

TARGETS = 48
"""Members, and bystanders, who are attacked, at most."""


@dataclass(frozen=True)
class Game:
    """What the attacker holds of each person (T, ...), and what the last models of S runs lose on it, (S, T), of which
    `inside` (S, T) bool says whether the person took part."""

    losses: np.ndarray
    inside: np.ndarray

    @property
    def roc(self) -> Roc:
        """log N(loss; m_in, s) - log N(loss; m_out, s) of every run and person, from medians over the other runs, less
        the run with the same random numbers, and one variance for all persons. Runs 2 p and 2 p + 1 are such a pair."""
        scores = np.empty(self.losses.shape)
        for at in range(len(scores)):
            rest = np.arange(len(scores)) // 2 != at // 2
            means, errors = [], []
            for there in (True, False):
                values = np.where(self.inside[rest] == there, self.losses[rest], np.nan)
                means.append(np.nanmedian(values, axis=0))
                errors.append(values - means[-1])
            variance = max(float(np.nanmean(np.square(errors))), 1e-300)
            scores[at] = ((self.losses[at] - means[1]) ** 2 - (self.losses[at] - means[0]) ** 2) / (2 * variance)
        return Roc(scores[~self.inside], scores[self.inside])


def membership(setting: Setting, alone: Setting | None, execution: Execution, shadows: int) -> list[Finding]:
    """The attack on members' original data, on their modified data, and on bystanders, with the collective and, where
    `alone` is the same experiment without it, without it. Trains `shadows` models for each of the two.

    ValueError if the model has no loss.
    """
    names = ["member, original data", "member, modified data", "bystander", "bystander, no collective"]
    if shadows < LEAST:
        why = f"not measurable: {shadows} shadow runs, {LEAST} are needed"
        return [Finding(f"membership of a {name}", "AUC", None, chance=0.5, note=why) for name in names]
    if not isinstance(setting.net, Net):
        raise ValueError(f"shadows = {shadows}: {setting.experiment.model.name} has no loss on a user's records")
    limit = _ceiling(setting)
    members, others = _targets(setting, True), _targets(setting, False)
    held = setting.federation.users(members, setting.member[members])
    bystanders = setting.federation.users(others, setting.member[others])
    copied = held.replace(x=held.x.copy(), y=held.y.copy(), mask=held.mask.copy())
    changed, _ = acting.act(
        setting.strategy, setting.collective, copied, setting.experiment.training.rounds, setting.key
    )
    blocks = [held, changed, bystanders] if len(changed) == len(held) else [held, held, bystanders]
    found: list[Finding] = []
    for number, (campaign, some) in enumerate(((setting, blocks), (alone, [bystanders]))):
        if campaign is None:
            continue
        try:
            games = _play(campaign, execution, shadows, some)
        except Diverged as error:
            return [Finding("membership", "AUC", None, note=f"not measurable: a shadow run diverged ({error})")]
        for name, game in zip(names[3:] if number else names[:3], games, strict=True):
            attack = f"membership of a {name}"
            if min(game.losses.shape) < 2:
                found.append(Finding(attack, "AUC", None, chance=0.5, note="not measurable: fewer than two such users"))
                continue
            note = f"{game.losses.shape[1]} users, {shadows} shadow runs, pooled over both"
            found += told(attack, game.roc, limit, note=note)
    return found


def _play(setting: Setting, execution: Execution, shadows: int, blocks: list[Users]) -> list[Game]:
    """Runs in pairs: with the same random numbers, and with the other half of the targets."""
    targets = np.unique(np.concatenate([block.ids for block in blocks]))
    losses: list[list[np.ndarray]] = [[] for _ in blocks]
    inside: list[list[np.ndarray]] = [[] for _ in blocks]
    for without, model in _runs(setting, execution, shadows, targets):
        for place, block in enumerate(blocks):
            losses[place].append(_loss(setting, model, block))
            inside[place].append(~without[block.ids])
    return [Game(np.array(loss), np.array(there)) for loss, there in zip(losses, inside, strict=True)]


def _runs(
    setting: Setting, execution: Execution, shadows: int, targets: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each shadow run who was left out, (N,) bool, and the last model (P,)."""
    key = setting.key.fold("shadows")
    fields = {name: getattr(setting.experiment, name) for name in Experiment.model_fields}
    for number in range(shadows):
        pair, half = divmod(number, 2)
        chance = key.fold("half", pair).uniforms(targets, 1)[:, 0]
        without = np.zeros(len(setting.member), dtype=bool)
        without[targets[(chance < np.median(chance)) == bool(half)]] = True
        seed = int(key.fold("seed", pair).rng().integers(2**31))
        shadow = replace(
            setting, experiment=Experiment(**fields | {"seed": seed}), on_platform=setting.on_platform & ~without
        )
        last = first_state(shadow).parameters
        for state, _ in run(shadow, execution, compute_here):
            last = state.parameters
        yield without, last


def _targets(setting: Setting, member: bool) -> np.ndarray:
    """Ids of members, or of others, who are attacked, ascending."""
    able = np.flatnonzero(setting.on_platform & (setting.member == member))
    order = np.argsort(setting.key.fold("audit", "targets").uniforms(able, 1)[:, 0], kind="stable")
    return np.sort(able[order[:TARGETS]])


def _loss(setting: Setting, model: np.ndarray, users: Users) -> np.ndarray:
    """The mean cross entropy of each user's records, (U,) float64."""
    net = setting.net
    assert isinstance(net, Net)
    flat, parameters = users.x[users.mask], net.unflatten(torch.from_numpy(model))
    with torch.no_grad():
        each = F.cross_entropy(net.logits(parameters, torch.from_numpy(flat)), torch.from_numpy(users.y[users.mask]),
                               reduction="none")  # fmt: skip
    owner = np.repeat(np.arange(len(users)), users.mask.sum(axis=1))
    sums = np.bincount(owner, each.double().numpy(), len(users))
    return np.asarray(sums / np.maximum(users.mask.sum(axis=1), 1))


def _ceiling(setting: Setting) -> Ceiling:
    """Taking part or not is one move of add-or-remove, on the whole curve of the accountant."""
    mechanism = setting.mechanism
    releases = mechanism.releases(setting.plan) if isinstance(mechanism, Noisy) else None
    if mechanism.adjacency != "add_or_remove" or mechanism.unit != "user" or not isinstance(releases, Gaussians):
        return Ceiling(f"no guarantee of {mechanism.name} says how little it shows that a user takes part")
    if releases.ratio == 0 or releases.mu is not None:
        return Ceiling("taking part or not", releases.mu)
    return Ceiling("taking part or not", curve=accounting.deltas(releases))
