"""Audits: scores of what an observer sees, with and without a target, and what they refute."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from fedacdp import local as training_code
from fedacdp import rounds
from fedacdp.config import Training, parts_of
from fedacdp.data import tables
from fedacdp.data.base import DataSet, Source
from fedacdp.keys import Key
from fedacdp.local.grams import Grams
from fedacdp.privacy.base import Plan
from fedacdp.rounds import compute_here
from fedacdp.setting import Setting, prepare
from fedacdp.theory.audit import Errors, one_run_epsilon
from tests import privacy_checks as checks
from tests.conftest import block, experiment, local

ONCE = Plan(users=1000, sampling_prob=1.0, rounds=1, local_steps=1, batch=1.0, batch_prob=1.0)


class Canaries(DataSet):
    """As many users as records, each with a value of the column `place` that nobody else has; all of one class."""

    name: Literal["canaries"] = "canaries"
    rows: int

    def load(self, folder: Path) -> Source:
        places = np.array([f"{place:06d}" for place in range(self.rows)])
        labels = np.where(np.arange(self.rows) % 2, "a", "a")
        parts = [{"place": places, "label": labels}, {"place": places[:10], "label": labels[:10]}]
        return tables.encode(parts[0], parts[1], "label", ("a", "b"), ())


def calibrated(name: str, epsilon: float, plan: Plan, divide: float = 1.0, **fields: Any) -> Any:
    """A mechanism that claims `epsilon`, with its noise divided."""
    mechanism = checks.mechanism_of(name, epsilon=epsilon, noise_multiplier=None, **fields).calibrated(plan)
    return mechanism.model_copy(update={"noise_multiplier": mechanism.noise_multiplier / divide})


def pair(name: str, mechanism: Any, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes of one aggregation, projected on the difference of the worst pair of worlds, (draws,) of each, in units
    of the clip norm: one user (one example) away and there, or at both ends of what it may send."""
    clip = mechanism.clip_norm
    if name == "local_dpsgd":
        return one_step(mechanism, draws, False), one_step(mechanism, draws, True)
    wild = np.full(draws, 1e6 * clip)
    message = mechanism.clip_factors(wild, np.zeros(draws, int), clip) * wild  # each place is an aggregation of its own
    nothing, key = np.zeros(0), Key(8)
    if mechanism.own_noise:
        ends = [mechanism.noise_of(user, draws, key) + sign * message for user, sign in ((1, -1), (2, 1))]
    else:
        ends = [mechanism.sum_noise(1, draws, turn, nothing, key).vector + turn * message for turn in (0, 1)]
    return ends[0] / clip, ends[1] / clip


def one_step(mechanism: Any, draws: int, there: bool) -> np.ndarray:
    """A step of DP-SGD of `draws` users with one record, or none, on the direction of its gradient."""
    users = block(users=1, records=1, shape=(1,), classes=2, ragged=False)
    users = users.rows(np.zeros(draws, int)).replace(ids=np.arange(draws) + draws * there)
    users = users.replace(x=np.full_like(users.x, 100.0), mask=np.full_like(users.mask, there))
    net = parts_of("model")["logistic"](name="logistic").net(users.schema)
    how = Training(rounds=1, sampling_prob=1.0, local_steps=1, local_lr=1.0)
    updates = training_code.train_users(net, torch.zeros(net.size), users, how, mechanism.example_rule(ONCE), Key(8))
    sign = 1 - 2 * users.y[0, 0]
    direction = sign * np.array([100.0, -100.0, 1.0, -1.0])  # weights, then biases, of two classes
    return updates.stack().double().numpy() @ direction / np.linalg.norm(direction) / mechanism.clip_norm


def errors(absent: np.ndarray, present: np.ndarray, mu: float) -> Errors:
    """Of a threshold that is fixed before: in units of the noise, one above the middle, or so that few are missed."""
    shift = 1.0 if abs(absent.mean()) < 0.5 else 2.0  # between the worlds, in units of the clip norm
    unit, low = shift / mu, 0.0 if shift == 1.0 else -1.0
    at = low + unit * max(mu / 2 + 1, mu - 2.4)
    return Errors(int((absent >= at).sum()), len(absent), int((present < at).sum()), len(present))


def training(name: str, model: dict[str, Any], count: int, rounds: int, q: float, privacy: dict[str, Any]) -> Setting:
    """A platform of nobody but canaries."""
    how: dict[str, Any] = {"rounds": rounds, "sampling_prob": q, "evaluate_every": rounds}
    if model["name"] != "histogram":
        how |= {"local_steps": 1, "local_lr": 1e-3 if name == "local_dpsgd" else 1e4}
    strategy = {"name": "strike", "alpha": 0.0}
    data = Canaries(users=count, rows=count)
    return prepare(
        experiment(data=data, model=model, strategy=strategy, training=how, privacy={"name": name, **privacy}), local()
    )


def one_run(setting: Setting, divide: float, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(coins, scores): a fair coin for each canary, which decides whether it takes part (central), whether its record
    is there (local_dpsgd) or which of two labels it has (local_update); and how much the observer sees of it in one run
    with the noise divided: in the model, or in the canary's messages, over all rounds."""
    mechanism, old, count = setting.mechanism, setting.federation, len(setting.on_platform)
    mechanism = mechanism.model_copy(update={"noise_multiplier": mechanism.noise_multiplier / divide})
    coins = np.random.default_rng(seed).random(count) < 0.5
    place = old.train.x[old.order].argmax(1)
    setting = dataclasses.replace(setting, mechanism=mechanism)
    start = rounds.first_state(setting).parameters.astype(float)
    if mechanism.observer == "model_holder":
        run = dataclasses.replace(setting, on_platform=coins)
        *_, (state, _) = rounds.run(run, local(256), compute_here)
        moved = (state.parameters - start)[: 2 * count]
        table = moved.reshape(count, 2).T if setting.experiment.model.learns_by == "counts" else moved.reshape(2, count)
        return coins, table[0, place] - (0 if setting.experiment.model.learns_by == "counts" else table[1, place])
    if mechanism.unit == "example":
        offsets = np.concatenate([[0], np.cumsum(coins)]).astype(old.offsets.dtype)
        federation = dataclasses.replace(old, order=old.order[coins], offsets=offsets)
    else:
        train = dataclasses.replace(old.train, y=np.where(coins, 0, 1)[np.argsort(old.order)])
        federation = dataclasses.replace(old, train=train)
    watched = dataclasses.replace(setting, federation=federation, grams=Grams(federation.sizes), watched=True)
    scores = np.zeros(count)

    def compute(*task: Any) -> Any:
        parts = compute_here(*task)
        for part in parts:
            rows, at = part.messages.astype(float), place[part.ids]
            weights, bias = rows[:, : 2 * count].reshape(-1, 2, count), rows[:, 2 * count :]
            mine = weights[np.arange(len(at)), :, at]
            scores[part.ids] += mine[:, 0] - mine[:, 1] + bias[:, 0] - bias[:, 1]
        return parts

    list(rounds.run(watched, local(256), compute))
    return coins, scores


def refuted(coins: np.ndarray, scores: np.ndarray, delta: float, share: float = 0.1) -> float:
    """The epsilon that one run refutes with 95 %: guesses about the canaries with the highest and the lowest scores."""
    some, order = int(share * len(coins)), np.argsort(scores)
    right = int(coins[order[-some:]].sum() + (~coins[order[:some]]).sum())
    return one_run_epsilon(len(coins), 2 * some, right, delta)
