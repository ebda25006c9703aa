"""A study: a question, a base experiment and a grid; where study files are, and what --set does to them."""

from __future__ import annotations

import copy
import itertools
import math
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedacdp.config import ConfigError, Experiment, experiment_from
from fedacdp.faults import explain


class Study(BaseModel):
    """A question, a base experiment and a grid of dotted keys; the product of the grid is the study."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$")
    question: str = Field(min_length=1)
    base: dict[str, Any]
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}

    def with_set(self, settings: dict[str, Any]) -> Study:
        """The study with some keys of the base set; a key that the grid varies becomes that one value."""
        base, grid = copy.deepcopy(self.base), dict(self.grid)
        for key, value in settings.items():
            for varied in self.grid:
                if key != varied and (key.startswith(varied + ".") or varied.startswith(key + ".")):
                    raise ConfigError(f"--set {key}: the grid varies {varied!r}; set {varied} instead")
            grid.pop(key, None)
            _put(base, key, value)
        return self.model_copy(update={"base": base, "grid": grid})

    def at_most(self, runs: int) -> Study:
        """The study; ConfigError, before anything is expanded, if its grid multiplies to more than so many runs."""
        count = math.prod(len(values) for values in self.grid.values())
        if count > runs:
            raise ConfigError(
                f"--max-runs = {runs}: the grid of {self.name} multiplies to {count:,} runs; give {count} to allow them"
            )
        return self

    def experiments(self) -> list[Experiment]:
        """Every experiment of the product, in grid order, without repetitions; ConfigError if one is wrong."""
        found: dict[str, Experiment] = {}
        for values in itertools.product(*self.grid.values()):
            raw = copy.deepcopy(self.base)
            for key, value in zip(self.grid, values, strict=True):
                _put(raw, key, copy.deepcopy(value))
            experiment = experiment_from(raw)
            found.setdefault(experiment.run_id, experiment)
        return list(found.values())


def shard(experiments: list[Experiment], which: str) -> list[Experiment]:
    """The part `i/n` (i from 1 to n) of the experiments: runs with the same baseline stay together, and these groups,
    ordered by the digest of that baseline, are dealt out in turn. So no run is in two parts, each part has the
    baselines that it needs, and together they are the study. ConfigError if it is none, or there are fewer groups."""
    found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", which, re.ASCII)
    if not found or int(found[1]) > int(found[2]):
        raise ConfigError(f"--shard = {which}: must be i/n, i from 1 to n, like 1/4")
    place, parts = int(found[1]), int(found[2])
    groups = sorted({experiment.baseline.run_id for experiment in experiments})
    if parts > len(groups):
        raise ConfigError(
            f"--shard = {which}: at most {len(groups)} parts; the runs of a setting and seed stay with their baseline"
        )
    own = set(groups[place - 1 :: parts])
    return [experiment for experiment in experiments if experiment.baseline.run_id in own]


def read_study(path: Path) -> Study:
    """The study in a TOML file; ConfigError if it is missing or not a study."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such study file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: not a readable TOML file: {error}") from None
    if "name" in raw:
        raise ConfigError(f"{path}: name: unknown key; a study is named by its file")
    try:
        return Study.model_validate({"name": path.stem, **raw})
    except ValidationError as error:
        raise ConfigError(f"{path}: " + "; ".join(explain(error, Study))) from None


def find_study(study: str) -> Study:
    """The study in a file, or by name among those in experiments/."""
    path = Path(study)
    if path.suffix == ".toml" or path.exists():
        return read_study(path)
    known = {file.stem: file for file in study_files()}
    if study not in known:
        raise ConfigError(f"{study}: no such study; known: {', '.join(known)}, or the path of a TOML file")
    return read_study(known[study])


def study_files() -> list[Path]:
    """The studies in experiments/ of this checkout, or those that came with the package."""
    package = Path(__file__).parent
    found = [place for place in (package.parent / "experiments", package / "experiments") if place.is_dir()]
    return sorted(found[0].glob("*.toml")) if found else []


def setting(text: str) -> tuple[str, Any]:
    """`KEY=TOML` of --set; a bare word stands for itself."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text}: must be KEY=VALUE, VALUE in TOML")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError as error:
        if re.fullmatch(r"\s*[A-Za-z_][\w.-]*\s*", value):
            return key.strip(), value.strip()
        raise ConfigError(f"--set {text}: the value is not TOML: {error}") from None


def _put(raw: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        raw = raw.setdefault(parent, {})
        if not isinstance(raw, dict):
            raise ConfigError(f"{key}: {parent} is a single value, it has no keys")
    raw[last] = value
