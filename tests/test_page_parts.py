"""What the page sets against each other is what was measured: critical mass, participation, persistence, two worlds."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest

from fedacdp.config import Experiment
from fedacdp.report import relations, write_figures, write_page
from fedacdp.report.drawing import COLUMN
from fedacdp.report.explorer import explorer
from fedacdp.report.numbers import SUCCESS
from fedacdp.report.worlds import worlds
from tests.conftest import experiment
from tests.test_report import CENTRAL, LOCAL, NONE, ROUNDS, Parsed, add_grid, add_run, only

ALPHAS = (0.0, 0.1, 0.2, 0.4)
LEVELS = {2.0: (0.1, 0.3, 0.7, 0.9), 3.0: (0.0, 0.1, 0.2, 0.3)}  # success under central privacy by noise and alpha


def told(made: Experiment) -> dict[str, Any]:
    """A guarantee whose epsilon depends on the noise, as a real one's does."""
    noise = getattr(made.privacy, "noise_multiplier", None)
    about = {"unit": "none", "observer": "none", "adjacency": "none", "epsilon": None, "delta": None}
    if noise is not None:
        about = {"unit": "user", "observer": made.privacy.observer, "adjacency": made.privacy.adjacency}
        about |= {"epsilon": 12.0 / noise, "delta": 1e-3}
    rest = {"noise_multiplier": noise, "clip_norm": 1.0, "warnings": [], "sentence": f"epsilon {about['epsilon']}"}
    return {"mechanism": made.privacy.name, "opinions": {}, "per_message_epsilon": None} | about | rest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Central privacy with two epsilons: success 1/2 at alpha 0.15, and never."""
    place = tmp_path_factory.mktemp("results") / "mass"
    for noise, levels in LEVELS.items():
        for alpha, level in zip(ALPHAS, levels, strict=True):
            for seed in (0, 1):
                made = experiment(strategy__alpha=alpha, privacy=CENTRAL | {"noise_multiplier": noise}, seed=seed)
                shift = 0.02 * (2 * seed - 1)
                measure = {"accuracy": 0.8 - level / 10, "success": max(0.0, level + shift)}
                add_run(place, made, lambda *_, found=measure: found, guarantee=told(made))
    return place


def test_the_critical_mass_lies_on_the_line_between_the_points_around_it(folder: Path) -> None:
    study = only(folder)
    found = {setting.epsilon: relations.critical_mass(setting, SUCCESS) for setting in study.settings}
    values = {epsilon: mass.value for epsilon, mass in found.items() if mass is not None}
    assert values == {6.0: pytest.approx(0.15), 4.0: math.inf}
    rows = relations.masses(study, SUCCESS)
    assert [(row["epsilon"], row["value"], row["reached"]) for row in rows] == [
        (4.0, 0.4, False),
        (6.0, pytest.approx(0.15), True),
    ]
    (line,) = relations.told_masses(rows)
    text = line.replace("\u00a0", " ")
    assert text.startswith("central privacy: not reached at 40 %, the largest measured, (95 % interval ")
    assert "\u2013 not reached, 2 seeds) with \u03b5 = 4; 15 % (95 % interval" in text
    drawn = json.dumps(relations.mass_against_epsilon(rows, "Critical mass").to_dict())
    assert '"domain": ["as it is"]' in drawn  # the colours know the lines that are drawn, or nothing would be
    assert '"setting": "as it is"' in drawn


def test_the_explorer_has_every_measured_point_once(folder: Path) -> None:
    study = only(folder)
    (mechanism,) = explorer(study)
    points = [
        (epsilon["value"], point["alpha"])
        for epsilon in mechanism["epsilons"]
        for variant in epsilon["variants"]
        for point in variant["points"]
    ]
    assert sorted(points) == sorted((s.epsilon, p.alpha) for s in study.settings for p in s.measured)


def test_two_worlds_have_the_means_with_and_without(folder: Path) -> None:
    study = only(folder)
    (first, second) = worlds(study)
    assert study.middle == 0.2
    rows = {row["what"]: row for row in second["rows"]}
    assert rows["Success"]["with"] == pytest.approx(0.7)
    assert rows["Success"]["without"] == pytest.approx(0.1)
    assert rows["Accuracy"]["with"] == pytest.approx(0.73)
    assert "100 people who did not take part" in first["odds"]


def test_the_heat_map_has_a_cell_for_every_share_and_compliance(tmp_path: Path) -> None:
    for compliance in (0.5, 1.0):
        for alpha in (0.0, 0.1, 0.2):
            for privacy in (NONE, LOCAL):
                made = experiment(strategy__alpha=alpha, strategy__compliance=compliance, privacy=privacy)
                success = alpha * compliance
                add_run(tmp_path, made, lambda *_, found=success: {"accuracy": 0.5, "success": found})
    study = only(tmp_path)
    maps = dict(relations.heat_maps(study, SUCCESS))
    assert len(maps) == 2
    for name, rows in maps.items():
        assert {(row["alpha"], row["compliance"]): row["value"] for row in rows} == {
            (alpha, compliance): alpha * compliance for alpha in (0.1, 0.2) for compliance in (0.5, 1.0)
        }
        assert "20.0\u00a0% with alpha 20\u00a0% and compliance 100\u00a0%" in relations.told_map(study, name, rows)


def test_what_lasts_after_the_stop_is_the_mean_over_the_seeds(tmp_path: Path) -> None:
    for seed, after in enumerate((0.1, 0.3)):  # half of what it was is 0.25: falls at once; never falls
        made = experiment(strategy__alpha=0.2, strategy__stop=1, seed=seed)
        add_run(tmp_path, made, lambda _, n, low=after: {"accuracy": 0.5, "success": 0.5 if n == 1 else low})
    (row,) = relations.lasting(only(tmp_path))
    assert (row["rounds"], row["at_least"], row["seeds"], row["stop"]) == ((1 + ROUNDS - 1) / 2, 1, 2, 1)
    html = write_page(tmp_path, tmp_path / "page.html").read_text(encoding="utf-8")
    assert any(cells[3:4] == ["at least 1.5"] for cells in Parsed(html).rows)


def test_figures_are_files_of_one_column_that_say_their_seeds(folder: Path, tmp_path: Path) -> None:
    files = write_figures(folder, tmp_path / "figures")
    stems = {path.stem for path in files}
    assert {"success_against_share", "accuracy_against_success", "critical_mass_of_success_against_epsilon"} <= stems
    assert {path.suffix for path in files} == {".svg", ".pdf", ".png", ".json"}
    for path in files:
        content = path.read_bytes()
        if path.suffix == ".svg":
            assert f'width="{COLUMN:g}mm"'.encode() in content[:400]
        elif path.suffix == ".pdf":
            width = float(content.partition(b"MediaBox [0 0 ")[2].split()[0])
            assert width == pytest.approx(COLUMN * 72 / 25.4, abs=0.01)
        elif path.suffix == ".png":
            width, _ = struct.unpack(">II", content[16:24])
            assert width == pytest.approx(COLUMN / 25.4 * 600, abs=2)
        else:
            about = json.loads(content)
            assert about["seeds"] == [2]
            assert "2 seeds" in about["certainty"]
            assert len(about["text"]) > 50


def test_a_study_of_one_epsilon_has_no_curve_of_critical_mass(tmp_path: Path) -> None:
    add_grid(tmp_path, [NONE, CENTRAL], [0.1, 0.2], 1)
    assert relations.masses(only(tmp_path), SUCCESS) == []
    assert relations.heat_maps(only(tmp_path), SUCCESS) == []
    assert math.isnan(only(tmp_path).settings[0].points[0].mean(("persistence", "all")))
