"""Gradient redirecting aims at the model in a file, which is read once, checked, and identifies the run."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from fedacdp.config import ConfigError, Experiment
from fedacdp.models.base import Model
from fedacdp.results import save_model
from fedacdp.rounds import compute_here, first_state, run
from fedacdp.setting import prepare
from fedacdp.tasks import pack_task, perform, read_partials
from tests.conftest import experiment, last_bytes, local

SHAPES = {"1.weight": (10, 64), "1.bias": (10,)}


def model_file(folder: Path, parameters: np.ndarray | None = None) -> Path:
    """A logistic model on digits as a run leaves it, with any parameters if none are given."""
    if parameters is None:
        parameters = np.random.default_rng(3).standard_normal(650).astype(np.float32)
    save_model(folder, SHAPES, parameters)
    return folder / "model.safetensors"


def made(path: Path | str, alpha: float = 0.3, **more: Any) -> Experiment:
    strategy = {"name": "gradient_redirecting", "alpha": alpha, "y_star": 8, "max_norm": 1e6, "pull": 0.2}
    training = {"rounds": 4, "sampling_prob": 1.0, "local_steps": 2, "local_lr": 0.1}
    return experiment(strategy={**strategy, "target": str(path), **more}, training=training)


def test_the_model_comes_nearer_to_the_one_in_the_file_and_distance_says_how_near(tmp_path):
    path = model_file(tmp_path)
    target = np.random.default_rng(3).standard_normal(650).astype(np.float32)
    # If everybody is a member, nothing but the pull is left: the distance falls by exactly 1 - pull.
    setting = prepare(made(path, alpha=1.0), local())
    start = np.linalg.norm(first_state(setting).parameters - target)
    for state, row in run(setting, local(), compute_here):
        [distance] = [v for m, _, v in row.values if m == "distance"]
        assert distance == pytest.approx(np.linalg.norm(state.parameters - target), rel=1e-6)
        assert distance == pytest.approx(start * 0.8**state.round, rel=1e-4)
    honest = prepare(made(path, alpha=0.0), local())
    *_, (_, row) = run(honest, local(), compute_here)
    assert "success" in {m for m, _, _ in row.values}
    assert next(v for m, _, v in row.values if m == "distance") > distance


def test_a_file_with_the_usual_aim_is_the_usual_aim_in_whatever_order_its_arrays_are(tmp_path):
    aim = np.zeros(650, np.float32)
    aim[640 + 8] = 1.0
    plain = made("no file", target_sha256="0" * 64).strategy.model_dump(exclude={"target", "target_sha256"})
    usual = experiment(strategy=plain)
    by_file = usual.strategy.model_dump() | {"target": str(model_file(tmp_path, aim)), "target_sha256": None}
    expected = last_bytes(prepare(usual, local()), local(), compute_here)
    assert last_bytes(prepare(experiment(strategy=by_file), local()), local(), compute_here) == expected
    swapped = tmp_path / "swapped.safetensors"
    swapped.write_bytes(save({"1.bias": aim[640:], "1.weight": aim[:640].reshape(10, 64).astype(np.float64)}))
    by_file |= {"target": str(swapped)}
    assert last_bytes(prepare(experiment(strategy=by_file), local()), local(), compute_here) == expected


def test_the_content_of_the_file_identifies_the_run_and_a_finished_run_does_not_need_it(tmp_path):
    path = model_file(tmp_path)
    first = made(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert first.strategy.target_sha256 == digest
    assert made(path, target_sha256=digest).run_id == first.run_id
    assert first.baseline.strategy.target_sha256 == digest
    model_file(tmp_path, np.ones(650, np.float32))
    assert made(path).run_id != first.run_id
    with pytest.raises(ConfigError, match=r"strategy\.target = .*its SHA-256 is [0-9a-f]{64}, not target_sha256 = "):
        prepare(first, local())
    path.unlink()
    assert Experiment.model_validate_json(first.text).run_id == first.run_id


def test_nodes_find_a_file_that_is_named_from_where_the_command_was_given(tmp_path, monkeypatch):
    model_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    chosen = made("model.safetensors", max_norm=2.0)
    assert chosen.strategy.target == "model.safetensors"
    setting = prepare(chosen, local())
    ids = [np.arange(60)]
    parameters = first_state(setting).parameters
    here = compute_here(setting, parameters, 1, ids)[0]
    task = pack_task(setting, local(), parameters, 1, ids)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    there = read_partials(perform(task), 1)[0]
    assert there.total.tobytes() == here.total.tobytes()
    assert here.acting.any()


def test_off_script_members_do_what_everybody_does(tmp_path):
    path = model_file(tmp_path)
    off = last_bytes(prepare(made(path, coordination_noise=1.0), local()), local(), compute_here)
    assert off == last_bytes(prepare(made(path, alpha=0.0), local()), local(), compute_here)


def test_one_of_several_collectives_has_a_file_too(tmp_path):
    path = model_file(tmp_path)

    def among(pull: float) -> Experiment:
        own = made(path, pull=pull)
        several = {"name": "several", "collectives": {"a": own.strategy.model_dump()}}
        return own.with_strategy(experiment(strategy=several).strategy)

    several, later = among(0.2), among(0.3)
    *_, (state, row) = run(prepare(several, local()), local(), compute_here)
    target = np.random.default_rng(3).standard_normal(650)
    [distance] = [v for m, g, v in row.values if (m, g) == ("distance", "a")]
    assert distance == pytest.approx(np.linalg.norm(state.parameters - target), rel=1e-5)
    assert str(path) in several.for_nodes.text
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ConfigError, match=r"strategy\.collectives\.a\.target = "):
        prepare(later, local())


def test_wrong_files_and_fields_are_told_in_one_line(tmp_path):
    def told(message: str, content: bytes | None = None, **more: Any) -> None:
        path = tmp_path / "target.safetensors"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError, match=message) as caught:
            prepare(made(path, **more), local())
        assert "\n" not in str(caught.value)

    right = {"1.weight": np.zeros((10, 64), np.float32), "1.bias": np.zeros(10, np.float32)}
    told(r"strategy\.target = .*target\.safetensors': cannot be read \(No such file")
    told(r"strategy\.target = .*not a readable safetensors file", b"nothing of the kind")
    told(r"strategy\.target = .*not a readable safetensors file", pickle.dumps(right))
    told(r"strategy\.target = .*not a readable safetensors file", save(right)[:-1])
    told(r"strategy\.target = .*has \(9,\) at '1\.bias', the model \(10,\)", save(right | {"1.bias": np.zeros(9)}))
    told(r"has nothing at '1\.weight', the model \(10, 64\)", save({"1.bias": right["1.bias"]}))
    told(r"has \(3,\) at 'more', the model nothing", save(right | {"more": np.zeros(3)}))
    told(r"strategy\.target = .*holds infinity or NaN", save(right | {"1.bias": np.full(10, np.nan)}))
    told(r"its SHA-256 is", save(right), target_sha256="0" * 64)
    told(r"strategy\.target_sha256 = '0'", save(right), target_sha256="0")
    told(r"strategy\.bias = 2: target = .*leave one out", save(right), bias=2.0)
    with pytest.raises(ConfigError, match=r"strategy\.target = .*cannot be read \(Is a directory"):
        made(tmp_path)
    with pytest.raises(ConfigError, match=r"strategy\.target_sha256: belongs to target"):
        made(tmp_path, target=None, target_sha256="0" * 64)


def test_the_shapes_here_are_those_of_the_model(tmp_path):
    setting = prepare(made(model_file(tmp_path)), local())
    assert isinstance(setting.experiment.model, Model)
    assert dict(setting.net.shapes) == SHAPES
