"""`fedacdp plan`: from the collective's own rows to sizes, in numbers and in words; wrong input ends in one line."""

from __future__ import annotations

import io
import json
import math
import re
import sys

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from fedacdp.cells import read
from fedacdp.cli import app, main
from fedacdp.config import ConfigError
from fedacdp.data import car_population as car
from fedacdp.keys import Key
from fedacdp.theory import certificates as ct
from fedacdp.theory import private_histogram as ph
from fedacdp.theory import thresholds

SMALL = """colour,size,city,grade
red,big,Ur,good
red,big,Ur,bad
blue,big,Rome,good
red,small,Rome,bad
blue,small,Ur,bad
red,big,Rome,bad
"""


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="module")
def cars(tmp_path_factory):
    """20,000 cars of the paper's population as a collective would have them in a file, and the cars themselves."""
    drawn = car.draw(20_000, Key(9))
    path = tmp_path_factory.mktemp("cars") / "cars.csv"
    columns = [np.array(levels)[codes] for levels, codes in zip(car.LEVELS, drawn.codes, strict=True)]
    lines = zip(*columns, np.array(car.LABELS)[drawn.y], strict=True)
    path.write_text("\n".join(",".join(line) for line in [(*car.NAMES, "Evaluation"), *lines]) + "\n")
    return path, drawn


SIGNAL = [word for name, level in car.SIGNAL.items() for word in ("--signal", f"{name}={level}")]


def told(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["plan", *map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.output


def planned(path, *words: object) -> dict:
    return json.loads(told(path, *words, "--format", "json"))


def on_cars(path, *words):
    return planned(path, "--label", "Evaluation", *SIGNAL, "--platform-size", 1_000_000, *words)


@pytest.mark.parametrize(
    ("strategy", "target", "rows"),
    [
        ("feature_label", "Excellent", (80_882, 80_292, 41_245)), ("feature_label", "Good", (114_035, 103_403, 82_596)),
        ("feature_only", "Excellent", (145_727, 149_626, 64_443)), ("unplant", "Excellent", (100_907, 101_527, 81_476)),
    ],
)  # fmt: skip
def test_a_sample_of_rows_comes_close_to_the_population(cars, strategy, target, rows):
    more = ("--estimators", 2_000) if strategy == "unplant" else ()
    found = on_cars(cars[0], "--strategy", strategy, "--target", target, *more)
    assert found["delta_tilde"] == pytest.approx(0.05 / (32 if strategy == "unplant" else 52), rel=1e-12)
    assert found["number_of_cells"] == 5
    sizes = {line["cell"]: line["members_certified"] for line in found["cells"]}
    for cell, n in zip(("Country=C2", "Country=C1", "Country=C5"), rows, strict=True):
        assert sizes[cell] == pytest.approx(n, rel=0.15)  # the frequencies of 20,000 rows are off by so much


def test_the_numbers_are_those_of_the_theorems(cars):
    path, drawn = cars
    natural, planted = (
        np.bincount(cell.astype(int) * 4 + drawn.y, minlength=24)[:20].reshape(5, 4)
        for cell in (drawn.natural, drawn.planted)
    )
    order = [car.LABELS.index(name) for name in sorted(car.LABELS)]
    cells = ct.feature_label(natural[:, order], planted[:, order], sorted(car.LABELS).index("Good"))
    terms = ct.Terms(1_000_000, 70_000, 0.1)
    found = on_cars(path, "--target", "Good", "--test-size", 70_000, "--delta", 0.1, "--success", 0.9)
    assert found["certified"] == pytest.approx(ct.certified(cells, terms, 20_000), abs=1e-12)
    assert found["members_needed"] == thresholds.members_needed(cells, terms, 0.9)
    assert found["members_not_vacuous"] == thresholds.members_needed(cells, terms, 0.0)
    assert found["rows"] == 20_000
    certify, win = thresholds.members_certified(cells, terms), thresholds.members_expected(cells, 1_000_000)
    for line in found["cells"]:
        at = int(line["cell"][-1]) - 1
        assert line.keys() == {"cell", "mass", "resistance", "members_certified", "members_expected"}
        assert line["mass"] == pytest.approx(cells.mass[at], abs=1e-12)
        assert line["resistance"] == pytest.approx(cells.resistance[at], abs=1e-12)
        assert (line["members_certified"], line["members_expected"]) == (certify[at], win[at])
    assert [line["mass"] for line in found["cells"]] == sorted((line["mass"] for line in found["cells"]), reverse=True)
    for point in found["curve"]:
        assert point["certified"] == pytest.approx(ct.certified(cells, terms, point["members"]), abs=1e-12)
        assert point["expected"] == pytest.approx(cells.outer[win <= point["members"]].sum(), abs=1e-12)


def test_privacy_asks_for_more_members_and_local_for_more_than_central(cars):
    found = on_cars(cars[0], "--target", "Good", "--central-epsilon", 1, "--local-epsilon", 1, "--success", 0.9)
    central, local = found["private"]
    assert (central["mu"], central["noise_sd"]) == pytest.approx((0.2681, 2**0.5 / 0.2681), rel=1e-3)
    assert local["noise_sd"] == pytest.approx(central["noise_sd"] * 1_000, rel=1e-12)
    assert found["members_needed"] < central["members_needed"] < local["members_needed"]
    assert found["members_expected"] < local["members_expected"]
    assert found["delta_tilde"] > central["delta_tilde"]
    [line] = [line for line in local["cells"] if line["cell"] == "Country=C5"]
    [plain] = [line for line in found["cells"] if line["cell"] == "Country=C5"]
    assert line["members_expected"] > plain["members_expected"]
    assert abs(central["cells"][0]["members_expected"] - found["cells"][0]["members_expected"]) < 100


def test_variances_certify_earlier(cars):
    plain, sharp = (on_cars(cars[0], "--target", "Good", "--bound", bound) for bound in ("hoeffding", "bernstein"))
    assert sharp["members_needed"] < 0.7 * plain["members_needed"]


def test_adaptive_unplanting_certifies_earlier_than_any_one_label(cars):
    found = on_cars(cars[0], "--strategy", "unplant", "--target", "Excellent", "--success", 0.8)
    needed = {way["label"]: way["members_needed"] for way in found["naive"]}
    assert needed.keys() == {"Good", "Average", "Poor"}
    assert found["members_needed"] < min(needed.values()) == needed["Good"]
    assert "'Good' would be best" in " ".join(found["words"])


def test_cells_are_counted_as_by_hand(small):
    found = planned(
        small, "--label", "grade", "--signal", "colour=red", "--signal", "size=big", "--target", "good",
        "--platform-size", 1_000,
    )  # fmt: skip
    lines = {line["cell"]: line for line in found["cells"]}
    assert {name: line["mass"] for name, line in lines.items()} == {"city=Ur": 0.5, "city=Rome": 0.5}
    assert lines["city=Ur"]["resistance"] == 0.0  # one good, one bad
    assert lines["city=Rome"]["resistance"] == pytest.approx(1 / 6)
    assert lines["city=Rome"]["members_expected"] == 251  # n / 2 > (1000 - n) / 6
    assert lines["city=Ur"]["members_expected"] == 1
    words = ("--label", "grade", "--signal", "colour=red", "--target", "good", "--platform-size", 60)
    masses = {line["cell"]: line["mass"] for line in planned(small, *words)["cells"]}
    assert masses == pytest.approx(
        {"size=big, city=Ur": 2 / 6, "size=big, city=Rome": 2 / 6, "size=small, city=Ur": 1 / 6,
         "size=small, city=Rome": 1 / 6}
    )  # fmt: skip
    one = planned(
        small, "--label", "grade", "--signal", "colour=red", "--columns", "", "--target", "good", "--platform-size", 9
    )
    [line] = one["cells"]
    assert (line["cell"], line["mass"], line["resistance"]) == ("signal", 1.0, pytest.approx(2 / 6))


def test_erasing_counts_all_cells_and_says_what_it_assumes(small):
    out = planned(small, "--label", "grade", "--signal", "colour=red", "--strategy", "erase", "--platform-size", 900)
    assert out["number_of_cells"] == 8
    assert out["delta_tilde"] == pytest.approx(0.05 / (2 + 2 * 8 + 3 * 16), rel=1e-12)
    rows = read(small, "grade", ["colour=red"], None, ",")
    for cell, anchor in enumerate(rows.anchors):
        name = rows.name(cell, [0, 1, 2])
        assert rows.name(int(anchor), [0, 1, 2]) == name.replace("colour=blue", "colour=red")
    # blue, big, Rome, good: where it is red instead, the one row is bad.
    [line] = [line for line in out["cells"] if line["cell"] == "colour=blue, size=big, city=Rome"]
    assert line["resistance"] == pytest.approx(1 / 6)
    assert "is assumed" in " ".join(out["words"])


def test_a_vacuous_certificate_says_from_which_size_on_it_is_none(cars, small):
    found = on_cars(cars[0], "--target", "Good")
    assert found["certified"] < 0
    text = " ".join(found["words"])
    assert "vacuous" in text
    n = found["members_not_vacuous"]
    assert f"{n:,} members" in text
    curve = {point["members"]: point["certified"] for point in found["curve"]}
    assert all((value > 0) == (size >= n) for size, value in curve.items())
    never = told(small, "--label", "grade", "--signal", "size=big", "--target", "good", "--platform-size", 60)
    assert "and so is that of every other size" in never


def test_a_signal_that_nobody_has_is_pointed_out(small):
    text = told(small, "--label", "grade", "--signal", "colour=green", "--target", "good", "--platform-size", 60)
    assert "None of the rows has colour=green" in text


@pytest.mark.parametrize("form", ["text", "md"])
def test_the_table_has_a_line_for_each_cell(cars, form):
    text = told(
        cars[0], "--label", "Evaluation", *SIGNAL, "--target", "Good", "--platform-size", 10**6, "--format", form
    )
    for country in ("C1", "C2", "C3", "C4", "C5"):
        assert re.search(rf"Country={country}[ |]+0\.\d{{4}}[ |]+0\.\d{{4}}[ |]+\d", text)


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_the_picture_is_drawn(small, tmp_path, suffix):
    path = tmp_path / f"plan.{suffix}"
    words = ("--label", "grade", "--signal", "colour=red", "--target", "good", "--platform-size", 60)
    told(small, *words, "--picture", path, "--central-epsilon", 2)
    data = path.read_bytes()
    if suffix == "svg":
        assert b"<svg" in data
        assert b"Central privacy, epsilon = 2" in data
    else:
        assert data.startswith(b"\x89PNG")


GOOD = {"--label": "grade", "--signal": "colour=red", "--target": "good", "--platform-size": "60"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"--label": "mark"}, r"--label = mark: no such column .* colour, size, city, grade"),
        ({"--signal": "color=red"}, r"--signal = color: no such column"), ({"--signal": "red"}, "must be COL=VALUE"),
        ({"--signal": "grade=good"}, "cannot be a feature"), ({"--columns": "town"}, "--columns = town: no such"),
        ({"--target": "fair"}, "--target = fair: not a label of column 'grade'; there are: bad, good"),
        ({"--platform-size": "5"}, "--platform-size = 5: fewer than the 6 rows"),
        ({"--delta": "0"}, "--delta = 0.0: must be above 0"), ({"--delta": "1"}, "--delta = 1.0: must be above 0"),
        ({"--delta": "nan"}, "--delta = nan"), ({"--success": "1"}, "--success = 1.0"),
        ({"--test-size": "0"}, "--test-size = 0: must be at least 1"), ({"--picture": "plan.pdf"}, ".svg or .png"),
        ({"--central-epsilon": "0"}, "--central-epsilon = 0.0: must be above 0"),
        ({"--local-epsilon": "1", "--privacy-delta": "1"}, "--privacy-delta = 1.0"),
        ({"--strategy": "unplant", "--estimators": "6"}, "--estimators = 6"), ({"--delimiter": ";"}, "no such column"),
        ({"--target": None}, "--target = None: not a label"),
        ({"--local-epsilon": "1e308"}, r"--local-epsilon = 1e\+308: must be above 0, and at most"),
        ({"--platform-size": "9" * 22}, "--platform-size = 9999999999999999999999: more than 1,000,000,000,000"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused(small, change, reason):
    words = [word for pair in (GOOD | change).items() if pair[1] is not None for word in pair]
    with pytest.raises(ConfigError, match=reason):
        told(small, *words)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no records"), ("colour,grade\n", "no records"), ("colour,grade\nred\n", "line 2"),
        ("colour,grade\nred,good\n", "only one label in .*, 'good';"),
        ("colour,colour,grade\nred,red,a\nred,red,b\n", "twice"),
        (None, "cannot be read"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_table_of_rows_is_refused(tmp_path, text, reason):
    path = tmp_path / "rows.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        told(path, *(word for pair in GOOD.items() for word in pair))


def test_more_cells_than_memory_are_refused(tmp_path):
    path = tmp_path / "wide.csv"
    rows = [",".join([f"v{(row * place) % 23}" for place in range(1, 13)] + ["ab"[row % 2]]) for row in range(60)]
    path.write_text("\n".join([",".join([f"c{place}" for place in range(12)] + ["grade"]), *rows]))
    words = ("--label", "grade", "--signal", "c0=v1", "--target", "a", "--platform-size", 1_000)
    with pytest.raises(ConfigError, match="cells x 2 labels are more than the memory"):
        told(path, *words)
    assert planned(path, *words, "--columns", "c1")["number_of_cells"] == 23


def test_a_mark_of_the_editor_before_the_header_is_no_part_of_a_name(small):
    small.write_bytes(b"\xef\xbb\xbf" + SMALL.encode())
    told(small, "--label", "grade", "--signal", "colour=red", "--target", "good", "--platform-size", 60)


def test_the_command_ends_with_status_2_and_one_line(small, monkeypatch, capsys):
    words = [word for pair in (GOOD | {"--target": "fair"}).items() for word in pair]
    monkeypatch.setattr(sys, "argv", ["fedacdp", "plan", str(small), *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("error: --target = fair")


def test_the_chance_of_a_private_cell_enters_the_expected_success(small):
    words = ("--label", "grade", "--signal", "colour=red", "--columns", "", "--target", "good")
    found = planned(small, *words, "--platform-size", 600, "--local-epsilon", 2)
    [arm] = found["private"]
    cells = ct.feature_label(np.array([[3, 1]]), np.array([[4, 2]]), 1)
    chance = ph.win_probability(ph.leads(cells, 600, 6), arm["noise_sd"])
    assert arm["expected"] == pytest.approx(float(chance[0]), abs=1e-12)


def test_erasing_is_expected_where_two_private_cells_agree_on_any_label(tmp_path):
    counts = np.array([[60, 40, 5], [30, 70, 9], [30, 20, 25], [50, 50, 1]])  # 1p, 0p, 1q, 0q; labels a, b, c
    path, n, size = tmp_path / "rows.csv", counts.sum(), 1200
    cells = [f"{name[0]},{name[1]},{y}" for name, row in zip(("1p", "0p", "1q", "0q"), counts, strict=True)
             for y, count in zip("abc", row, strict=True) for _ in range(count)]  # fmt: skip
    path.write_text("\n".join(["s,city,y", *cells]) + "\n")
    words = ("--label", "y", "--signal", "s=1", "--strategy", "erase", "--platform-size", size, "--local-epsilon", 2)
    [arm] = planned(path, *words)["private"]
    anchor, table = np.array([0, 0, 2, 2]), (size - n) / n * counts
    table[np.arange(4), counts[anchor].argmax(axis=1)] += counts.sum(axis=1)
    noise = arm["noise_sd"] * np.random.default_rng(3).standard_normal((100_000, 4, 3))
    guess = (table + noise).argmax(axis=2)
    shares = counts.sum(axis=1) / n
    agreed = (guess == guess[:, anchor]).mean(axis=0) @ shares
    assert arm["expected"] == pytest.approx(agreed, abs=4.9 * 0.5 / math.sqrt(100_000))
    alone = (guess == counts[anchor].argmax(axis=1)).mean(axis=0) @ shares
    assert abs(agreed - alone) > 0.03, "the chance of the label alone is caught"


def test_cells_as_csv_are_those_of_the_json_and_no_formulas(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("@cmd,y\n" + "".join(f"{'+1' if i % 3 else 'b'},{i % 2}\n" for i in range(60)))
    words = (path, "--label", "y", "--signal", "@cmd=b", "--target", "1", "--platform-size", 6000, "--columns", "@cmd",
             "--strategy", "erase", "--central-epsilon", 1)  # fmt: skip
    found = json.loads(told(*words, "--format", "json"))
    frame = pd.read_csv(io.StringIO(told(*words, "--format", "csv")))
    arms = [found, *found["private"]]
    assert frame["privacy"].tolist() == [arm["privacy"] for arm in arms for _ in arm["cells"]]
    assert frame["cell"].tolist() == ["'" + cell["cell"] for arm in arms for cell in arm["cells"]]
    for name in ("mass", "resistance"):
        assert frame[name].tolist() == pytest.approx([cell[name] for arm in arms for cell in arm["cells"]])
    for name in ("members_certified", "members_expected"):
        expected = [cell[name] for arm in arms for cell in arm["cells"]]
        assert [None if pd.isna(value) else value for value in frame[name]] == expected


def test_naive_unplanting_under_noise_takes_more_members(cars):
    words = (cars[0], "--label", "Evaluation", *SIGNAL, "--target", "Good", "--platform-size", 10**6,
             "--strategy", "unplant", "--local-epsilon", 1)  # fmt: skip
    found = json.loads(told(*words, "--format", "json"))
    [private] = found["private"]
    free, noisy = ({way["label"]: way["members_needed"] for way in arm["naive"]} for arm in (found, private))
    assert free.keys() == noisy.keys()
    assert all(noisy[label] is None or noisy[label] > free[label] for label in free if free[label] is not None)
    assert any(noisy[label] is not None for label in free)
    assert told(*words).count("If all sent one label instead") == 2
