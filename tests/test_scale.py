"""Memory is for a chunk of users, not for all of them, and does not grow with the number of rounds."""

from __future__ import annotations

import gc
import threading
import tracemalloc
from typing import Any

import numpy as np
import pytest

from fedacdp import rounds
from fedacdp.checkpoint import Checkpoint
from fedacdp.config import ConfigError
from fedacdp.data import digits
from fedacdp.data.base import Source, federate
from fedacdp.keys import Key
from fedacdp.rounds import Row, State, compute_here, run
from fedacdp.setting import Setting, prepare
from fedacdp.signals import Columns, Patch
from fedacdp.strategy import Strategy
from fedacdp.users import Column, Examples, Schema
from tests.conftest import experiment, local


def population(users: int, records: int = 1, rounds: int = 2, **changes: Any) -> Setting:
    data = {"name": "digits", "users": users, "partition": "resampled", "records": records}
    training = {"rounds": rounds, "sampling_prob": 1.0, "local_steps": 1, "local_lr": 0.1}
    privacy = {"name": "central", "noise_multiplier": 1.0, "delta": 1e-5, "clip_norm": 1.0}
    return prepare(experiment(data=data, training=training, privacy=privacy, **changes), local())


def peak_of_a_round(users: int) -> int:
    """Bytes that a run of two rounds takes at its peak, over what is there before (of numpy's and Python's)."""
    setting = population(users)
    for _ in run(setting, local(), compute_here):
        pass
    gc.collect()
    tracemalloc.start()
    try:
        for _ in run(setting, local(), compute_here):
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_user_more_takes_a_few_bytes_more():
    """Not its record, 256 bytes, nor its update, 2,600."""
    few, many = peak_of_a_round(2_000), peak_of_a_round(12_000)
    assert (many - few) / 10_000 < 150


def test_nothing_grows_with_the_number_of_rounds():
    setting, traced = population(1_000, rounds=30), {}
    tracemalloc.start()
    try:
        for state, _ in run(setting, local(), compute_here):
            if state.round in (5, 30):
                gc.collect()
                traced[state.round] = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert traced[30] - traced[5] < 20_000, "bytes, of which 25 rounds' cohorts would take 200,000"


def test_a_checkpoint_of_a_late_round_writes_no_more_than_one_of_an_early_round(tmp_path):
    values = [("accuracy", "all", 0.1), ("update_norm", "acting", 1 / 3)]
    rows = [Row(round, 0.25, values) for round in range(1, 31)]
    users = np.arange(5, dtype=np.int32)
    states = [
        State(round, np.full(9, round, np.float32), users, np.zeros(2), np.zeros(0), 7, 8, users) for round in range(31)
    ]
    checkpoint, state, lines = Checkpoint(tmp_path), tmp_path / "checkpoint.safetensors", tmp_path / "checkpoint.jsonl"
    checkpoint.save(states[10], rows[:10])
    early = (state.stat().st_size, lines.read_bytes(), lines.stat().st_ino)
    checkpoint.save(states[20], rows[:20])
    assert abs(state.stat().st_size - early[0]) <= 16
    assert lines.read_bytes().startswith(early[1])
    assert lines.stat().st_ino == early[2], "appended to, not written again"
    before = state.read_bytes()
    checkpoint.save(states[30], rows)
    state.write_bytes(before)  # as if the power had failed between the two files
    for _ in range(2):
        checkpoint = Checkpoint(tmp_path)
        found = checkpoint.load()
        assert found is not None
        assert found[1] == rows[:20]
        assert (found[0].round, found[0].sent, found[0].draws) == (20, 7, 8)
        np.testing.assert_array_equal(found[0].parameters, states[20].parameters)
        checkpoint.save(states[20], rows[:20])
    checkpoint.save(states[30], rows)
    assert Checkpoint(tmp_path).load()[1] == rows
    lines.write_bytes(lines.read_bytes()[:-5])
    with pytest.raises(ConfigError, match="damaged checkpoint"):
        Checkpoint(tmp_path).load()
    checkpoint.remove()
    assert list(tmp_path.iterdir()) == []
    assert Checkpoint(tmp_path).load() is None


def test_sums_are_held_a_few_at_a_time_and_give_the_same_bits(monkeypatch):
    setting, asked = population(2_000, records=2), []

    def compute(setting, parameters, round, chunks):
        asked.append(len(chunks))
        return compute_here(setting, parameters, round, chunks)

    def last() -> np.ndarray:
        *_, (state, row) = run(setting, local(16), compute)
        assert {m: v for m, g, v in row.values if g == "all"}["messages"] == 2_000
        return state.parameters

    whole = last()
    assert asked == [125, 125]
    monkeypatch.setattr(rounds, "_SUMS", 7 * 8 * setting.net.size)
    asked.clear()
    np.testing.assert_array_equal(last(), whole)
    assert max(asked) == 7
    assert sum(asked) == 250


@pytest.mark.parametrize("partition", ["iid", "sizes"])
def test_a_block_holds_each_users_records_and_zeros(partition):
    rng = np.random.default_rng(0)
    train = Examples(rng.random((500, 3), np.float32) + 1, rng.integers(1, 4, 500), Schema((3,), tuple("abcd")))
    fields = {"spread": 1.0} if partition == "sizes" else {}
    federation = federate(digits.Digits(users=40, partition=partition, **fields), Source(train, train), Key(0))
    for ids in (np.arange(40), np.array([7, 3, 39]), np.array([5]), np.arange(0)):
        space = rounds.Space()
        space.block((40, 300, 3))[:] = np.nan  # what another block has left behind
        for block in (federation.users(ids, ids > 5), federation.users(ids, ids > 5, space)):
            np.testing.assert_array_equal(block.ids, ids)
            np.testing.assert_array_equal(block.member, ids > 5)
            assert block.x.shape == (len(ids), federation.sizes[ids].max(initial=0), 3)
            for row, user in enumerate(ids):
                mine = federation.order[federation.offsets[user] : federation.offsets[user + 1]]
                np.testing.assert_array_equal(block.mask[row], np.arange(block.x.shape[1]) < len(mine))
                np.testing.assert_array_equal(block.x[row, : len(mine)], train.x[mine])
                np.testing.assert_array_equal(block.y[row, : len(mine)], train.y[mine])
                assert not block.x[row, len(mine) :].any()
                assert not block.y[row, len(mine) :].any()


def test_runs_in_threads_do_not_share_a_block():
    settings = [population(600, records=3, rounds=4, seed=seed) for seed in range(3)]
    alone = [[state for state, _ in run(setting, local(16), compute_here)][-1].parameters for setting in settings]
    found: dict[int, np.ndarray] = {}

    def one(place: int) -> None:
        *_, (state, _) = run(settings[place], local(16), compute_here)
        found[place] = state.parameters

    threads = [threading.Thread(target=one, args=(place,)) for place in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place in range(3):
        np.testing.assert_array_equal(found[place], alone[place])


def test_the_test_set_is_marked_once(monkeypatch):
    setting, places = population(50, rounds=6), []
    place = Patch.place
    sizes = len(setting.federation.test)

    def counting(self: Patch, x: np.ndarray, schema: Schema) -> np.ndarray:
        places.extend([len(x)] if len(x) == sizes else [])
        return place(self, x, schema)

    monkeypatch.setattr(Patch, "place", counting)
    setting.federation.test._changes.clear()
    assert len(list(run(setting, local(), compute_here))) == 6
    assert places == [sizes]


def test_marked_records_depend_on_the_whole_signal_and_are_kept_two_at_a_time():
    columns = (Column("age", 0, mean=0.1, std=2.0), Column("city", 1, levels=("Ur", "Bath")))
    schema = Schema((3,), ("no", "yes"), columns)
    test = Examples(np.ones((5, 3), np.float32), np.zeros(5, np.int64), schema)
    for value in (1.0, 2.0, 3.0, 1.0):
        signal = Columns(values={"age": value, "city": "Bath"})
        marked = signal.marked(test)
        np.testing.assert_array_equal(marked, signal.place(test.x, schema))
        assert signal.marked(test) is marked
        with pytest.raises(ValueError, match="read-only"):
            marked[0] = 0
        assert len(test._changes) <= 2
    assert (test.x == 1).all()


def test_a_strategy_that_looks_at_the_test_set_as_it_is_costs_no_second_prediction(monkeypatch):
    setting = population(50, strategy={"name": "strike", "alpha": 0.1})
    predict, calls = type(setting.net).predict, []
    monkeypatch.setattr(type(setting.net), "predict", lambda *args: (calls.append(1), predict(*args))[1])
    values = dict.fromkeys(("accuracy", "success"), 0.0) | {
        metric: value
        for metric, group, value in rounds.evaluate(setting, setting.net.initial(Key(0)))
        if group == "all"
    }
    assert len(calls) == 1
    assert values["success"] == pytest.approx(1 - values["accuracy"])


def test_full_compliance_means_every_member_in_every_round():
    setting = population(400)
    users = setting.federation.users(np.arange(400), setting.member)
    assert type(setting.experiment.strategy).acts is Strategy.acts
    for compliance in (1.0, np.nextafter(1.0, 0.0)):
        strategy = setting.experiment.strategy.model_copy(update={"compliance": float(compliance)})
        np.testing.assert_array_equal(strategy.acts(users, 3, Key(1)), setting.member)
