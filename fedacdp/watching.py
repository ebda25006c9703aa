"""A run seen by who watches it: the run is repeated, bit for bit, and each message is looked at as it passes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from fedacdp.anonymity import Links, Pooled, scores, standardised
from fedacdp.config import Execution
from fedacdp.rounds import Partial, compute_here, first_state, gather, run, work
from fedacdp.setting import Setting

View = Literal["messages", "noised", "sum", "models"]
"""What is seen: updates as they are clipped, before any noise; messages as users send them; the sum of a round with its
noise, and who took part; the released models alone."""

GUIDES = 32
"""People on whose records somebody who knows the campaign tries out what it would do to an update."""

LINKED = 200
"""Users whose messages of two rounds are kept, fewer where messages are long."""

_LINKED_BYTES = 2**28


@dataclass(frozen=True)
class Along:
    """How far apart members and others lie on average along the campaign's direction, before noise, and the spread of
    others there, both in the units of an update."""

    distance: float
    spread: float


@dataclass(frozen=True)
class Seen:
    """What was seen of N users: their scores; messages of users who sent twice, and the ids of these users (n,); who
    is not to be judged, (N,) bool; along the campaign's direction; and the last model (P,)."""

    pooled: Pooled
    links: Links
    linked: np.ndarray
    guides: np.ndarray
    along: Along | None
    parameters: np.ndarray


def guides_of(setting: Setting) -> np.ndarray:
    """Up to GUIDES users of the platform who are no members, and a tenth of them at most, (N,) bool."""
    others = np.flatnonzero(setting.on_platform & ~setting.member)
    order = np.argsort(setting.key.fold("audit", "guides").uniforms(others, 1)[:, 0], kind="stable")
    found = np.zeros(len(setting.member), dtype=bool)
    found[others[order[: min(GUIDES, len(others) // 10)]]] = True
    return found


def watched(setting: Setting, view: View) -> Setting:
    """The setting in which messages come one by one as `view` has them. Users who add noise add it to each message, or,
    where updates before noise are seen, to their sum, which is not looked at."""
    mechanism = setting.mechanism
    if "noise_per" in type(mechanism).model_fields:
        mechanism = mechanism.model_copy(update={"noise_per": "message" if view == "noised" else "sum"})
    return replace(setting, mechanism=mechanism, watched=True)


def watch(setting: Setting, execution: Execution, view: View, campaign: Setting | None = None) -> Seen:
    """Repeat a run and look at it. `campaign`: the setting whose collective is looked for, where the run itself has
    none. Memory for the messages of one cohort, and for two of LINKED users. Raises Diverged."""
    watcher = _Watcher(setting, campaign or setting, view)
    last = first_state(setting).parameters
    for state, _ in run(setting, execution, watcher.compute):
        last = state.parameters
        watcher.look(state.round, last)
    return watcher.seen(last)


@dataclass
class _Watcher:
    """Notes what passes in a round, and looks at it when the round is over."""

    setting: Setting
    campaign: Setting
    view: View
    passed: list[tuple[Setting, np.ndarray, list[np.ndarray]]] = field(default_factory=list)
    sums: list[tuple[np.ndarray, float, float]] = field(default_factory=list)
    along: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.guides = guides_of(self.campaign)
        self.pooled, self.links = Pooled(len(self.setting.member)), _Kept(self.setting)

    def compute(self, now: Setting, model: np.ndarray, round: int, chunks: list[np.ndarray]) -> list[Partial]:
        """Does the work as it is done, so that the run stays what it was."""
        self.passed.append((now, model, chunks))
        return compute_here(now, model, round, chunks)

    def look(self, round: int, after: np.ndarray) -> None:
        """Look at the messages of a round, or at their sum, which moved the model to `after` (P,)."""
        passed, self.passed = self.passed, []
        if not passed or self.view == "models":
            return
        now, model, chunks = passed[0][0], passed[0][1], [ids for _, _, some in passed for ids in some]
        bare = _messages(watched(now, "messages"), model, round, chunks)
        if len(bare.ids) < 3:
            return
        direction = self.direction(now.clip, model, round)
        if direction is not None:
            self.along.append((bare.ids, bare.messages @ direction))
        if self.view == "sum":
            step = after.astype(np.float64) - model
            self.sums.append((bare.ids, float(np.linalg.norm(step)), 0.0 if direction is None else step @ direction))
            return
        noised = self.view == "noised" and now.mechanism.own_noise
        seen = _messages(watched(now, "noised"), model, round, chunks) if noised else bare
        found = scores(seen.messages, direction)
        self.pooled.add(seen.ids, {name: standardised(values) for name, values in found.items()})
        self.links.add(seen.ids, seen.messages)

    def direction(self, clip: float, model: np.ndarray, round: int) -> np.ndarray | None:
        """The unit vector (P,) from what the guides would send to what they would if they were members, of the first
        collective; None if they would send the same, or nothing."""
        found, guides = [], np.flatnonzero(self.guides)
        for number in (-1, 0):
            tried = np.where(self.guides, number, -1).astype(self.campaign.collective.dtype)
            setting = replace(watched(self.campaign, "messages"), collective=tried, clip=clip)
            found.append(_messages(setting, model, round, [guides]))
        if not len(guides) or not np.array_equal(found[0].ids, found[1].ids):
            return None
        pull = (found[1].messages - found[0].messages).mean(axis=0, dtype=np.float64)
        length = float(np.linalg.norm(pull))
        return pull / length if length > 0 else None

    def seen(self, last: np.ndarray) -> Seen:
        """All that was seen, when the run is over."""
        if self.sums:
            norms, pulls = (standardised(np.array([of[part] for of in self.sums])) for part in (1, 2))
            for (ids, *_), norm, pull in zip(self.sums, norms, pulls, strict=True):
                self.pooled.add(ids, {"norm": np.full(len(ids), norm), "direction": np.full(len(ids), pull)})
        return Seen(self.pooled, *self.links.pairs(), self.guides, self._along(), last)

    def _along(self) -> Along | None:
        if not self.along:
            return None
        ids, values = (np.concatenate([part[place] for part in self.along]) for place in (0, 1))
        member, judged = self.campaign.member[ids], ~self.guides[ids]
        if not member.any() or not (judged & ~member).any():
            return None
        others = values[judged & ~member]
        return Along(float(values[member].mean() - others.mean()), float(others.std()))


class _Kept:
    """The first two messages of some users, less the mean of their rounds."""

    def __init__(self, setting: Setting):
        size = setting.net.size
        order = np.argsort(setting.key.fold("audit", "links").uniforms(np.arange(len(setting.member)), 1)[:, 0])
        users = order[: min(LINKED, max(2, _LINKED_BYTES // (8 * size)))]
        self.row = {int(user): row for row, user in enumerate(users)}
        self.count = np.zeros(len(users), np.int64)
        self.kept = np.zeros((2, len(users), size), np.float32)
        self.users = users

    def add(self, ids: np.ndarray, messages: np.ndarray) -> None:
        common = messages.mean(axis=0)
        for place, user in enumerate(ids):
            row = self.row.get(int(user))
            if row is not None and self.count[row] < 2:
                self.kept[self.count[row], row] = messages[place] - common
                self.count[row] += 1

    def pairs(self) -> tuple[Links, np.ndarray]:
        twice = self.count == 2
        return Links(self.kept[0, twice], self.kept[1, twice]), self.users[twice]


def _messages(setting: Setting, model: np.ndarray, round: int, chunks: list[np.ndarray]) -> Partial:
    """All messages of the users of these chunks, one by one."""
    return gather((work(setting, model, round, ids) for ids in chunks), len(model), True)
