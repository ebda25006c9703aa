"""An experiment is named by everything that may change a number; wrong input is told in one line."""

import re
import tomllib
from pathlib import Path

import pytest

from fedacdp.config import ConfigError, Experiment
from fedacdp.grid import Study, read_study, setting, study_files
from tests.conftest import experiment, local, raw_experiment

STUDY = Study(
    name="t",
    question="?",
    base=raw_experiment(),
    grid={"strategy.alpha": [0.0, 0.1], "privacy": [{"name": "none"}], "seed": [0, 1]},
)


def test_the_run_id_is_a_digest_of_everything():
    first = experiment()
    assert first.run_id == experiment().run_id
    assert re.fullmatch("[0-9a-f]{12}", first.run_id)
    others = [
        experiment(seed=8),
        experiment(strategy__alpha=0.2),
        experiment(training__local_lr=0.2),
        experiment(data__users=61),
        experiment(strategy__signal={"name": "patch", "size": 3}),
    ]
    assert len({first.run_id, *(other.run_id for other in others)}) == 6
    assert Experiment.model_validate_json(first.text).run_id == first.run_id


def test_the_baseline_is_the_same_experiment_without_members():
    first = experiment()
    assert first.baseline.strategy.alpha == 0
    assert first.baseline.run_id == experiment(strategy__alpha=0.0).run_id != first.run_id
    assert first.baseline.baseline.run_id == first.baseline.run_id


def test_the_study_is_the_product_of_its_grid():
    assert len(STUDY.experiments()) == 4
    assert {(e.strategy.alpha, e.seed) for e in STUDY.experiments()} == {(0.0, 0), (0.0, 1), (0.1, 0), (0.1, 1)}


def test_set_changes_the_base_and_narrows_the_grid():
    narrowed = STUDY.with_set({"strategy.alpha": 0.3, "training.rounds": 1})
    assert {e.strategy.alpha for e in narrowed.experiments()} == {0.3}
    assert {e.training.rounds for e in narrowed.experiments()} == {1}
    with pytest.raises(ConfigError, match=r"privacy\.epsilon.*varies 'privacy'"):
        STUDY.with_set({"privacy.epsilon": 2.0})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b=1", ("a.b", 1)),
        ("a=true", ("a", True)),
        ('a="x"', ("a", "x")),
        ("data.name=mnist", ("data.name", "mnist")),
        ("a = [1, 2]", ("a", [1, 2])),
    ],
)
def test_set_reads_toml_and_bare_words(text, expected):
    assert setting(text) == expected


@pytest.mark.parametrize("text", ["a", "=1", "a=", "a=[1", "a=1 2"])
def test_set_refuses_what_is_neither(text):
    with pytest.raises(ConfigError, match="--set"):
        setting(text)


DP = {"name": "central", "delta": 1e-5, "clip_norm": 1.0}
WRONG = [
    ({"privacy": DP}, "privacy.*exactly one.*neither"),
    ({"privacy": {**DP, "epsilon": 1.0, "noise_multiplier": 1.0}}, "privacy.*exactly one.*both"),
    ({"privacy": {**DP, "epsilon": -1.0}}, r"privacy\.epsilon = -1"),
    ({"privacy": {**DP, "epsilon": float("inf")}}, r"privacy\.epsilon = inf"),
    ({"privacy": {**DP, "epsilon": 1.0, "delta": 1.5}}, r"privacy\.delta = 1\.5"),
    ({"privacy": {**DP, "epsilon": 1.0, "clip_norm": 0}}, r"privacy\.clip_norm = 0"),
    (
        {"privacy": {**DP, "noise_multiplier": 1.0, "clip": 2.0}},
        r"privacy\.clip = 2\.0: unknown key; allowed: .*clip_norm",
    ),
    ({"privacy": {"name": "centrall"}}, "privacy.*'centrall'; known: .*central"),
    ({"privacy": "central"}, "privacy = 'central': must be a table"),
    ({"strategy__alpha": 1.5}, r"strategy\.alpha = 1\.5"),
    ({"strategy__alpha": -0.1}, r"strategy\.alpha = -0\.1"),
    ({"strategy__alpha": float("nan")}, r"strategy\.alpha = nan"),
    ({"strategy__compliance": 2}, r"strategy\.compliance = 2"),
    ({"strategy__stop": 3, "strategy__start": 5}, "stop = 3.*start = 5"),
    ({"strategy__signal": "patchh"}, r"strategy\.signal.*patch"),
    ({"strategy__form": "feature_only_x0"}, "x0: must be given"),
    ({"training__rounds": 0}, r"training\.rounds = 0"),
    ({"training__rounds": 2.5}, r"training\.rounds = 2\.5"),
    ({"training__sampling_prob": 0}, r"training\.sampling_prob = 0"),
    ({"training__local_epochs": 1}, "local_steps, local_epochs: exactly one.*both"),
    ({"training__batch": "fulll"}, r"training\.batch.*fulll"),
    ({"trainning": {}}, "trainning = {}: unknown key; allowed: data, model"),
    ({"training__round": 3}, r"training\.round = 3: unknown key; allowed: rounds"),
    ({"data__users": 0}, r"data\.users = 0"),
    ({"data__partition": "iidd"}, r"data\.partition = 'iidd'"),
    ({"data": {"name": "digits"}}, r"data\.users: must be given"),
    ({"model": {"name": "mlp", "hidden": []}}, r"model\.hidden"),
    ({"seed": -1}, "seed = -1"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_wrong_fields_are_told_by_name_value_and_what_is_allowed(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        experiment(**changes)
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)


MISFITS = [
    ({"strategy__y_star": 99}, r"strategy\.y_star = 99.*0 to 9"),
    ({"strategy__y_star": "cat"}, r"strategy\.y_star = 'cat'"),
    ({"strategy__signal": {"name": "patch", "size": 9}}, r"strategy\.signal\.size = 9: larger than the image"),
    ({"strategy__signal": {"name": "grid", "spacing": 20}}, r"strategy\.signal\.spacing = 20"),
    (
        {"strategy__signal": {"name": "columns", "values": {"age": 3}}},
        r"signal\.values\.age.*no column 'age'",
    ),
    (
        {"strategy__signal": {"name": "offset", "column": "age", "amount": 3}},
        r"signal\.column.*no column 'age'",
    ),
    ({"strategy": {"name": "poisoning", "to": 3, "source": 3}}, r"strategy\.to = 3"),
    ({"data__users": 10_000}, r"data\.users = 10000: digits has only 14\d\d training records"),
    ({"model": {"name": "cnn"}}, 'model.name = "cnn": needs images of at least 14'),
    ({"strategy__members_from": "nobody"}, "strategy.members_from = 'nobody': no such group; there are: "),
    ({"data__partition": "by_column", "data__column": "age"}, "age"),
]


@pytest.mark.parametrize(("changes", "message"), MISFITS)
def test_parts_that_do_not_fit_the_data_are_refused(changes, message):
    from fedacdp.setting import prepare

    with pytest.raises(ConfigError, match=message):
        prepare(experiment(**changes), local())


def test_a_group_too_small_for_the_collective_is_refused_with_the_largest_alpha():
    from fedacdp.setting import prepare

    data = {"name": "digits", "users": 60, "partition": "dirichlet", "concentration": 0.1}
    group = str(prepare(experiment(data=data), local()).federation.group[0])
    with pytest.raises(ConfigError, match=r"strategy\.alpha = 0\.99.*alpha at most 0\."):
        prepare(experiment(data=data, strategy__alpha=0.99, strategy__members_from=group), local())


def test_dpsgd_refuses_epochs_because_they_depend_on_private_sizes():
    training = {"rounds": 3, "sampling_prob": 0.5, "local_epochs": 2, "batch": 4, "local_lr": 0.1}
    privacy = {"name": "local_dpsgd", "noise_multiplier": 1.0, "delta": 1e-5, "clip_norm": 1.0}
    with pytest.raises(ConfigError, match=r"training\.local_epochs"):
        experiment(training=training, privacy=privacy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such study file"),
        ("a = [", "not a readable TOML file"),
        ("\xff\xfe", "not a readable TOML file"),
        ("[base]\n", "question: must be given"),
        ('question = "?"\nbase = {}\ngird = {}\n', "gird.*unknown key; allowed: .*grid"),
        ('question = "?"\nbase = {}\n[grid]\nseed = []\n', "grid.seed"),
        ('question = "?"\nbase = {}\nname = "x"\n', "named by its file"),
    ],
)
def test_a_file_that_is_not_a_study_is_refused(tmp_path, content, message):
    path = tmp_path / "wrong.toml"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=message) as caught:
        read_study(path)
    assert "wrong.toml" in str(caught.value)


@pytest.mark.parametrize("path", study_files(), ids=lambda path: path.stem)
def test_every_study_that_comes_with_the_project_is_valid(path: Path):
    study = read_study(path)
    assert study.question.endswith("?")
    assert study.experiments()
    assert set(tomllib.loads(path.read_text())) <= {"question", "base", "grid"}
