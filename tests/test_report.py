"""The page shows what was measured and nothing else, loads nothing, and keeps every text a text."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import tomllib
from collections.abc import Callable
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy import stats

from fedacdp.config import ConfigError, Experiment
from fedacdp.privacy.base import Guarantee
from fedacdp.report import page as page_module
from fedacdp.report import write_page
from fedacdp.report.answer import answer, certainty, reach
from fedacdp.report.figures import against_share, thinned, with_intervals
from fedacdp.report.numbers import SUCCESS, Estimate, StudyResults
from fedacdp.report.odds import detection_bound, odds, rounded_up
from fedacdp.report.page import groups, promises
from fedacdp.report.reading import studies
from fedacdp.report.recipe import toml
from fedacdp.report.words import names, percent, scales
from fedacdp.results import save_rounds, table, write_json
from fedacdp.rounds import Row
from tests.conftest import experiment

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)> \" ' & {{ 7*7 }} =1+1 \u2028"
SCRIPT = files("fedacdp.report").joinpath("page.js").read_text(encoding="utf-8")
ROUNDS = 3
NONE = {"name": "none"}
CENTRAL = {"name": "central", "noise_multiplier": 2.0, "delta": 1e-3, "clip_norm": 1.0}
LOCAL = {"name": "local_update", "noise_multiplier": 4.0, "delta": 1e-3, "clip_norm": 1.0}
DPSGD = {"name": "local_dpsgd", "noise_multiplier": 3.0, "delta": 1e-3, "clip_norm": 1.0}

Measure = Callable[[Experiment, int], dict[str, float]]


def promise(made: Experiment) -> dict[str, Any]:
    """A manifest's guarantee, with numbers that need no accountant."""
    mechanism = made.privacy
    if mechanism.name == "none":
        found = Guarantee("none", "none", "none", "none", math.inf, math.nan, 0.0, math.nan, "no noise", "no clipping")
    else:
        kind = mechanism.name, mechanism.unit, mechanism.observer, mechanism.adjacency
        warnings = ("delta = 0.001 is not below 1/users: <b>mind</b>",) if mechanism.name == "central" else ()
        found = Guarantee(*kind, 1.5, 1e-3, 2.0, 1.0, "a sampler", "three rounds", warnings=warnings)
    return found.to_json() | {"opinions": {}}


def measured(made: Experiment, round: int) -> dict[str, float]:
    """Plausible metrics, different for every run and round."""
    alpha, noise = made.strategy.alpha, 0.013 * made.seed + 0.002 * round + 0.01 * len(made.privacy.name)
    return {"accuracy": 0.9 - noise, "success": min(1.0, 2 * alpha + noise), "success@not_target": alpha + noise}


def add_run(
    folder: Path, made: Experiment, measure: Measure = measured, status: str = "done", reason: str = "", **about: Any
) -> None:
    """A finished run on disk, as a study leaves it."""
    place = folder / made.run_id
    place.mkdir(parents=True)
    write_json(place / "experiment.json", json.loads(made.text))
    rows = []
    for number in range(1, made.training.rounds + 1):
        found = measure(made, number)
        values = [(name.partition("@")[0], name.partition("@")[2] or "all", value) for name, value in found.items()]
        rows.append(Row(number, 0.1, [*values, ("update_norm", "all", 77.0)]))
    save_rounds(place, rows)
    manifest = {
        "status": status, "reason": reason, "study": folder.name, "question": "Does it work?", "role": "run",
        "run_id": made.run_id, "rounds_done": len(rows), "guarantee": promise(made), "data_sha256": "ab" * 32,
        "members": round(made.strategy.alpha * 60), "started": "2026-01-01T00:00:00Z", "seconds": 1.25,
        "execution": {"engine": "local", "nodes": 2, "chunk": 64, "device": "cpu", "gpus_per_node": 0.0, "jobs": 1},
        "versions": {"fedacdp": "0.1.0"},
    }  # fmt: skip
    write_json(place / "manifest.json", manifest | about)


def add_study(folder: Path, question: str = "Does it work?", **grid: list[Any]) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {"name": folder.name, "question": question, "base": {"seed": 0, "model": {"name": "mlp"}}, "grid": grid}
    write_json(folder / "study.json", recipe)
    return recipe


def add_grid(folder: Path, mechanisms: list[Any], alphas: list[float], seeds: int, **changes: Any) -> None:
    for privacy in mechanisms:
        for alpha in alphas:
            for seed in range(seeds):
                changed = {"strategy__alpha": alpha, "privacy": privacy, "seed": seed} | changes
                add_run(folder, experiment(**changed))


def only(folder: Path) -> StudyResults:
    (found,) = studies(folder)
    return found


class Parsed(HTMLParser):
    """Tags, attributes, texts, and tables as rows of cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        self.texts.append((self.tags[-1] if self.tags else "", data))
        if self.rows and self.rows[-1] and data.strip():
            self.rows[-1][-1] = " ".join(f"{self.rows[-1][-1]} {data}".split())

    def values(self, name: str) -> list[str]:
        return [value for attribute, value in self.attributes if attribute == name]


class Example(NamedTuple):
    """A folder of results, its page, and both read back."""

    folder: Path
    html: str
    parsed: Parsed
    study: StudyResults


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    """Four mechanisms, four alphas, two seeds; one diverged run with absurd numbers and one failed without any."""
    folder = tmp_path_factory.mktemp("results") / "example"
    add_study(folder, seed=[0, 1])
    add_grid(folder, [NONE, CENTRAL, LOCAL, DPSGD], [0.0, 0.05, 0.1, 0.4], 2)
    absurd = experiment(strategy__alpha=0.1, privacy=CENTRAL, seed=2)
    add_run(folder, absurd, lambda *_: {"accuracy": 0.0, "success": 1.0}, "diverged", "the model blew up")
    add_run(folder, experiment(strategy__alpha=0.4, seed=2), lambda *_: {}, "failed", f"ValueError: {HOSTILE}")
    html = write_page(folder, folder / "report.html").read_text(encoding="utf-8")
    return Example(folder, html, Parsed(html), only(folder))


def test_every_number_of_the_table_of_points_is_that_of_the_tidy_table(example: Example) -> None:
    frame = table(example.folder)
    frame = frame[(frame["status"] == "done") & (frame["round"] == ROUNDS)]
    named = names(example.study.settings)
    shown = {(row[0], row[1]): row for row in example.parsed.rows if len(row) == 10 and row[0] != "Setting"}
    wanted = 0
    for (setting, alpha), rows in frame.groupby(["setting", "alpha"]):
        wanted += 1
        row = shown[named[setting], f"{100 * alpha:g} %"]
        values = {key: part["value"].to_numpy() for key, part in rows.groupby(["metric", "group"])}
        success = values["success", "all"]
        low, high = stats.t.interval(0.95, len(success) - 1, success.mean(), stats.sem(success))
        runs = frame[(frame["setting"] == setting) & (frame["alpha"] == alpha)]["run_id"].unique()
        diverged = setting.startswith("central") and alpha == 0.1
        failed = setting == "none" and alpha == 0.4
        assert row[2:9] == [
            "2 of 3" if diverged or failed else "2",
            "\u2013" if setting == "none" else "1.5",
            f"{100 * values['accuracy', 'all'].mean():.1f} %",
            f"{100 * success.mean():.1f} %",
            f"{100 * max(0, low):.1f} \u2013 {100 * min(1, high):.1f} %",
            f"{100 * values['success', 'not_target'].mean():.1f} %",
            f"{100 * values['success_baseline', 'all'].mean():.1f} %",
        ]
        assert set(runs) <= set(row[9].split())
    assert wanted == len(shown) == 16


def test_figures_draw_the_numbers_of_the_table(example: Example) -> None:
    study = example.study
    named = names(study.settings)
    for draw in (against_share, with_intervals):
        data = json.dumps(draw(study, study.settings, SUCCESS, "Success").to_dict())
        for setting in study.settings:
            for point in setting.points:
                mean = json.dumps({"setting": named[setting.label], "alpha": point.alpha, "value": point.mean(SUCCESS)})
                assert mean[:-1] in data
                for value in point.estimates[SUCCESS].values:
                    assert json.dumps({"setting": named[setting.label], "alpha": point.alpha, "value": value}) in data


def test_diverged_and_failed_runs_are_listed_and_never_averaged(example: Example) -> None:
    point = next(s for s in example.study.settings if s.label.startswith("central")).at(0.1)
    assert point is not None
    assert len(point.runs) == 3
    assert point.done == 2
    assert max(point.estimates[SUCCESS].values) < 0.5  # the planted 1.0 of the diverged run would show
    rows = example.parsed.rows
    assert any(row[4].startswith("diverged : the model blew up") for row in rows if len(row) == 8)
    assert any(row[4].startswith("failed : ValueError: </script>") for row in rows if len(row) == 8)
    assert "2 of 34 runs diverged or failed" in " ".join(example.html.split())


def test_each_point_links_to_its_runs_and_all_ids_are_different(example: Example) -> None:
    parsed = example.parsed
    ids = parsed.values("id")
    assert len(ids) == len(set(ids))
    links = parsed.values("href")
    assert {link for link in links if not link.startswith("data:")} <= {f"#{name}" for name in ids}
    assert {f"#s1-{run.run_id}" for run in example.study.runs} <= set(links)


def loads(html: str) -> list[str]:
    """Everything in a page that would make a browser ask for something or run something."""
    own = (f"<script>{SCRIPT}</script>", '<script type="application/json" id="measured">')
    for script in own:  # what the policy admits, and data
        html = html.replace(script, "", 1)
    parsed = Parsed(html)
    bad = [tag for tag in parsed.tags if tag in ("script", "img", "iframe", "object", "embed", "image", "use")]
    bad += [name for name, value in parsed.attributes if name.startswith("on") or name in ("src", "srcset", "style")]
    bad += [value for name, value in parsed.attributes if name in ("href", "xlink:href") and value[0] not in "#d"]
    bad += re.findall(r"(?:url\(|@import)[^;]*", html)
    return bad + [url for url in re.findall(r"https?://[^\"' <)]*", html) if not url.startswith("http://www.w3.org/")]


def test_the_page_loads_nothing_and_its_policy_admits_its_own_style_and_script_only(example: Example) -> None:
    html = example.html
    assert loads(html) == []
    assert loads('<img src="https://example.org/a.png" onload="x()">')  # the check sees what it should
    assert loads("<style>a { background: url(//example.org) }</style>")
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = next(value for value in Parsed(html).values("content") if "default-src" in value)
    assert "default-src 'none'" in policy
    assert f"style-src 'sha256-{digest}'" in policy
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert script == SCRIPT
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert "unsafe" not in policy


def test_the_page_is_small_and_can_be_read_without_seeing_it(example: Example) -> None:
    html, parsed = example.html, example.parsed
    assert len(html.encode()) < 1_500_000
    assert parsed.values("role").count("img") == parsed.tags.count("svg") == 7
    alternatives = [text for text in parsed.values("aria-label") if text.startswith("Line chart of success")]
    named = names(example.study.settings)
    for setting in example.study.settings:
        for point in setting.points:
            wanted = f"{percent(point.mean(SUCCESS))} at a share of {100 * point.alpha:g}\u00a0%"
            assert named[setting.label] in alternatives[0]
            assert wanted in alternatives[0]


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    folder = tmp_path / "hostile"
    recipe = add_study(folder, HOSTILE, **{HOSTILE: [HOSTILE]})
    group = "</script><img/onerror=x>"
    for members_from, seed in ((group, 0), ("other", 0), (group, 1), ("other", 1)):
        for alpha in (0.0, 0.2):
            add_run(folder, experiment(strategy__alpha=alpha, strategy__members_from=members_from, seed=seed))
    html = write_page(folder, folder / "report.html").read_text(encoding="utf-8")
    parsed = Parsed(html)
    assert loads(html) == []
    assert HOSTILE in [text for tag, text in parsed.texts if tag == "h1"]
    drawn = [text for tag, text in parsed.texts if tag == "text"]
    assert f"no privacy (strategy.members_from={group})" in drawn  # the legend
    assert any(text.startswith("(strategy.members_from=</script>") for text in drawn)  # the heading of a frame
    assert "49" not in next(text for tag, text in parsed.texts if tag == "title")
    assert tomllib.loads(toml(recipe)) == {name: recipe[name] for name in ("question", "base", "grid")}


def test_what_a_study_lacks_is_absent(tmp_path: Path) -> None:
    folder = tmp_path / "lean"
    add_run(folder, experiment(strategy={"name": "honest"}, training__rounds=1), lambda *_: {"accuracy": 0.625})
    html = write_page(folder, tmp_path / "deep" / "page.html").read_text(encoding="utf-8")
    parsed = Parsed(html)
    assert "svg" not in parsed.tags
    assert "script" not in parsed.tags
    assert "script-src" not in html
    headings = [text for tag, text in parsed.texts if tag in ("h1", "h2") and text.strip()]
    assert headings[:2] == ["Does it work?", "What each privacy guarantee means"]
    assert ["Setting", "Share", "Seeds", "Epsilon", "Accuracy", "Runs"] in parsed.rows
    text = " ".join(text for _, text in parsed.texts)
    assert "62.5\u00a0%" in text
    assert "one seed" in text
    assert "success" not in text.lower().split("every number")[1]
    assert "Save this as" not in text


def test_several_studies_get_a_section_each_even_if_they_share_runs(tmp_path: Path) -> None:
    for name in ("first", "second"):
        add_study(tmp_path / name, f"What of the {name}?")
        add_grid(tmp_path / name, [NONE], [0.1], 1, training__rounds=1)
    html = write_page(tmp_path, tmp_path / "page.html").read_text(encoding="utf-8")
    parsed = Parsed(html)
    assert len(parsed.values("id")) == len(set(parsed.values("id")))
    headings = [text for tag, text in parsed.texts if tag == "h2"]
    assert [text for text in headings if text.strip()] == ["What of the first?", "What of the second?"]


def test_the_answer_says_what_was_measured_and_no_more(tmp_path: Path) -> None:
    folder = tmp_path / "answer"
    level = {
        "none": {0.0: 0.05, 0.1: 0.45, 0.2: 0.55, 0.4: 0.9},
        "local_update": {0.0: 0, 0.1: 0.1, 0.2: 0.2, 0.4: 0.3},
    }
    for privacy in (NONE, LOCAL):
        for alpha in (0.0, 0.1, 0.2, 0.4):
            made = experiment(strategy__alpha=alpha, privacy=privacy)
            add_run(folder, made, lambda e, _: {"accuracy": 0.5, "success": level[e.privacy.name][e.strategy.alpha]})
    study = only(folder)
    said = [sentence.replace("\u00a0", " ") for sentence in answer(study)]
    assert said == [
        "With 20 % of the users in the collective, the collective\u2019s success is 55.0 % with no privacy and 20.0 % "
        "with local privacy (noise_multiplier=4). Without a collective it is between 0.0 % and 5.0 %.",
        "The smallest measured share with a success of at least 50 %: 20 % with no privacy; not reached at 40 %, the "
        "largest measured, with local privacy (noise_multiplier=4).",
        "Without a collective, the model\u2019s accuracy is 50.0 % with no privacy and 50.0 % with local privacy "
        "(noise_multiplier=4).",
    ]
    assert "one seed" in certainty(study)


def test_a_study_without_a_completed_run_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "diverged"
    add_run(folder, experiment(), status="diverged")
    html = write_page(folder, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "No run of this study was completed" in html
    assert reach(only(folder).settings[0]) == "not measured"


def test_a_line_breaks_where_nothing_was_measured(tmp_path: Path) -> None:
    folder = tmp_path / "gap"
    for alpha in (0.1, 0.2, 0.3):
        add_run(folder, experiment(strategy__alpha=alpha), status="diverged" if alpha == 0.2 else "done")
    study = only(folder)
    data = json.dumps(against_share(study, study.settings, SUCCESS, "Success").to_dict())
    assert '"alpha": 0.2, "value": null' in data


def test_different_kinds_of_epsilon_are_never_silently_on_one_axis(tmp_path: Path) -> None:
    add_grid(tmp_path / "kinds", [NONE, CENTRAL, LOCAL, DPSGD], [0.1], 1)
    add_grid(tmp_path / "same", [NONE, CENTRAL, CENTRAL | {"noise_multiplier": 3.0}], [0.1], 1)
    lines = scales(list(only(tmp_path / "kinds").settings))
    assert [line.partition(":")[0] for line in lines] == [
        "central privacy",
        "local privacy",
        "local privacy per example",
    ]
    assert ["add-or-remove" in line for line in lines] == [True, False, True]
    assert scales(list(only(tmp_path / "same").settings)) == []


def test_names_of_settings_are_as_different_as_their_labels(example: Example) -> None:
    settings = example.study.settings
    assert len(set(names(settings).values())) == len(settings) == 4
    twin = settings[1].guarantee | {"mechanism": "central_adaptive"}
    alike = [settings[1], type(settings[1])("central_adaptive noise_multiplier=2", settings[1].experiment, twin, ())]
    assert len(set(names(tuple(alike)).values())) == 2


def test_each_guarantee_is_spelled_out_with_its_warning(example: Example) -> None:
    study, html = example.study, example.html
    found = {made.guarantee["mechanism"]: made for made in promises(study)}
    assert set(found) == {"none", "central", "local_update", "local_dpsgd"}
    assert found["none"].odds == "Nothing limits how well an attacker can tell who took part."
    assert "100 people who did not take part" in found["central"].odds
    assert "took part" not in found["local_update"].odds  # replace-one hides what was sent, not that it was
    assert "100 examples that were not used" in found["local_dpsgd"].odds
    assert "Not covered" in html
    assert "delta = 0.001 is not below 1/users: &lt;b&gt;mind&lt;/b&gt;" in html


@pytest.mark.parametrize(
    ("epsilon", "delta", "bound"),
    [
        (0.0, 0.0, 0.01),
        (math.log(2), 0.0, 0.02),
        (1.0, 1e-3, math.e * 0.01 + 1e-3),
        (8.0, 1e-3, 1 - math.exp(-8) * 0.989),
        (1e4, 0.0, 1.0),
        (0.5, 1.0, 1.0),
    ],
)
def test_the_odds_are_those_of_the_formula(epsilon: float, delta: float, bound: float) -> None:
    assert detection_bound(epsilon, delta) == pytest.approx(bound, rel=1e-12)


def test_randomised_response_reaches_the_bound_and_nothing_exceeds_it() -> None:
    for epsilon in (0.1, 1.0, 3.0):
        keep = math.exp(epsilon) / (1 + math.exp(epsilon))  # flag "yes": TPR = keep, FPR = 1 - keep
        assert detection_bound(epsilon, 0.0, 1 - keep) == pytest.approx(keep, rel=1e-12)
        rates = np.linspace(0, 1, 101)
        bounds = np.array([detection_bound(epsilon, 0.0, float(rate)) for rate in rates])
        gauss = stats.norm.cdf(stats.norm.ppf(rates) + 1.0)  # mu = 1 is (epsilon, delta)-DP for delta(epsilon), below
        delta = stats.norm.cdf(-epsilon + 0.5) - math.exp(epsilon) * stats.norm.cdf(-epsilon - 0.5)
        relaxed = np.array([detection_bound(epsilon, float(delta), float(rate)) for rate in rates])
        assert (gauss <= relaxed + 1e-12).all()
        assert (bounds >= rates - 1e-12).all()


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1.0"), (2.81828, "2.9"), (98.96, "99.0"), (99.96682, "99.97"), (99.99999912, "99.9999992")],
)
def test_a_bound_is_never_rounded_down_nor_to_certainty(value: float, text: str) -> None:
    assert rounded_up(value) == text
    assert rounded_up(100.0) == "100"


def test_the_odds_sentence_holds_the_bound() -> None:
    about = {"epsilon": 1.0, "delta": 1e-3, "unit": "user", "adjacency": "add_or_remove"}
    assert odds(about).endswith("flags at most 2.9 of 100 who did.")


def test_the_interval_is_students() -> None:
    values = (0.2, 0.4, 0.45, 0.61)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert Estimate(values).interval == pytest.approx((low, high), rel=1e-12)
    assert Estimate((0.0, 1.0)).interval == (0.0, 1.0)
    assert all(map(math.isnan, Estimate((0.5,)).interval))


def test_many_settings_are_drawn_in_frames_that_can_be_told_apart(tmp_path: Path) -> None:
    for compliance in (0.2, 0.5, 1.0):
        add_grid(tmp_path, [NONE, CENTRAL, LOCAL], [0.1], 1, strategy__compliance=compliance, strategy__alpha=0.1)
    for noise in range(5, 15):
        add_grid(tmp_path, [CENTRAL | {"noise_multiplier": noise}], [0.1], 1)
    settings = only(tmp_path).settings
    frames = groups(settings)
    assert {s.label for frame in frames for s in frame} == {s.label for s in settings}
    assert max(map(len, frames)) <= page_module.TOGETHER
    alone = [[s.guarantee["mechanism"] for s in frame] for frame in frames]
    assert ["none", "central", "local_update"] in alone
    assert all(frame[0] == "none" and frame.count("none") == 1 for frame in alone)


def test_long_learning_curves_are_thinned_and_keep_their_end() -> None:
    assert thinned([1, 2, 3]) == [1, 2, 3]
    drawn = thinned(list(range(1, 1002)))
    assert len(drawn) <= 200
    assert drawn[-1] == 1001


def test_many_runs_are_folded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "FOLDED", 1)
    add_grid(tmp_path, [NONE], [0.1], 2, training__rounds=1)
    html = write_page(tmp_path, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Show 1 points" in html


def test_wrong_input_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no finished runs"):
        write_page(tmp_path, tmp_path / "page.html")
    add_grid(tmp_path / "study", [NONE], [0.1], 1)
    (tmp_path / "study" / "study.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        write_page(tmp_path, tmp_path / "page.html")
    (tmp_path / "study" / "study.json").unlink()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        write_page(tmp_path, tmp_path / "file" / "page.html")


def test_what_cannot_be_read_is_told_in_a_line_each_and_the_rest_is_shown(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    add_study(folder)
    add_grid(folder, [NONE], [0.0, 0.1], 1)
    add_run(folder, experiment(seed=9), study="another")
    spoiled = {}
    for seed, name in enumerate(("manifest.json", "experiment.json", "rounds.parquet"), 1):
        made = experiment(seed=seed)
        add_run(folder, made)
        (folder / made.run_id / name).write_text("{")
        spoiled[name] = made.run_id
    newer = experiment(seed=4)
    add_run(folder, newer)
    write_json(folder / newer.run_id / "experiment.json", json.loads(newer.text) | {"novelty": 1})
    begun = experiment(seed=5)
    add_run(folder, begun)
    (folder / begun.run_id / "manifest.json").unlink()
    study = only(folder)
    assert len(study.runs) == 3
    assert len(study.faults) == 6
    html = " ".join(write_page(folder, tmp_path / "page.html").read_text(encoding="utf-8").split())
    for name, run_id in (*spoiled.items(), ("novelty", newer.run_id), ("not finished", begun.run_id)):
        assert any(name in line and run_id in line for line in study.faults), name
    assert "holds runs of 2 studies, another, mixed" in html
    assert html.count("Not all of the folder is shown.") == 6
    with pytest.raises(ConfigError, match=r"cannot be read|damaged manifest"):
        table(folder)
    add_grid(tmp_path / "other", [NONE], [0.1], 1)
    (manifest,) = (tmp_path / "other").glob("*/manifest.json")
    manifest.write_text("{")
    assert any(str(manifest) in line for line in studies(tmp_path)[0].faults)
