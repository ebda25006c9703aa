"""`fedacdp audit`: what who watches a run can tell about its people, found by repeating it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fedacdp import results, watching
from fedacdp.canaries import canaries as released_canaries
from fedacdp.config import ConfigError, Execution, Experiment
from fedacdp.findings import ceiling, linked, singled_out
from fedacdp.labels import settings
from fedacdp.rounds import Diverged
from fedacdp.setting import Setting, prepare
from fedacdp.shadows import membership
from fedacdp.study import here
from fedacdp.watching import Seen, watch


class View(StrEnum):
    """What is seen, see `watching.View`."""

    messages = "messages"
    noised = "noised"
    sum = "sum"
    models = "models"


class Format(StrEnum):
    """Formats of the answer."""

    text = "text"
    json = "json"
    csv = "csv"


def audit(
    folder: Annotated[Path, typer.Argument(help="A run's folder, or a folder of runs: all with a collective.")],
    view: Annotated[
        View | None,
        typer.Option(
            help="messages: before noise; noised: as sent; sum: of a round, with who took part; models: these alone.",
            show_default="noised if local, sum if central, else messages",
        ),
    ] = None,
    shadows: Annotated[int, typer.Option(help="Shadow runs for membership, twice as many trained.", min=0)] = 0,
    canaries: Annotated[int, typer.Option(help="Canary users for a lower bound on epsilon.", min=0)] = 0,
    picture: Annotated[Path | None, typer.Option(help="Also draw the ROC curves of one run: FILE.svg or .png.")] = None,
    format: Annotated[Format, typer.Option(help="Format.")] = Format.text,
    data_dir: Annotated[Path, typer.Option(help="Folder of downloaded data sets.")] = Path("~/.cache/fedacdp"),
) -> None:
    """Attack a run: single out members, link messages, tell who took part, bound epsilon from below."""
    if picture is not None and picture.suffix not in (".svg", ".png"):
        raise ConfigError(f"--picture = {picture}: must end in .svg or .png")
    runs = _runs(folder)
    if picture is not None and len(runs) > 1:
        raise ConfigError(f"--picture = {picture}: draws one run, {folder} holds {len(runs)}")
    labels = settings([experiment for _, _, experiment in runs])
    found = []
    for (path, manifest, experiment), label in zip(runs, labels, strict=True):
        if len(runs) > 1:
            typer.echo(f"{label}, alpha {experiment.strategy.alpha:g}, seed {experiment.seed}", err=True)
        execution = _execution(path, manifest, data_dir)
        with here(execution):
            attacked = _attack(path, manifest, experiment, execution, view, shadows, canaries)
        found.append({"study": manifest["study"], "run_id": experiment.run_id, "setting": label} | attacked)

    from fedacdp.report import audited

    if picture is not None:
        audited.draw(found[0], picture)
    if format is Format.json:
        typer.echo(json.dumps({"runs": found}, indent=1, allow_nan=False))
    elif format is Format.csv:
        typer.echo(audited.rows(found), nl=False)
    else:
        typer.echo(audited.told(found[0]) if len(found) == 1 else audited.summary(found))


def _runs(folder: Path) -> list[tuple[Path, dict[str, Any], Experiment]]:
    """The run in `folder`, or all runs below it that are done and have a collective; ConfigError if there are none."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder of results")
    found = list(results.finished_runs(folder))
    if (folder / "manifest.json").exists():
        for path, manifest, _ in found:
            if path == folder and manifest["status"] != "done":
                raise ConfigError(f"{folder}: the run {manifest['status']} ({manifest['reason']}), nothing to audit")
        return [run for run in found if run[0] == folder]
    if not found:
        raise ConfigError(f"{folder}: neither a finished run's folder (manifest.json) nor one that holds any")
    fit = [run for run in found if run[1]["status"] == "done" and run[2].strategy.alpha > 0]
    if not fit:
        raise ConfigError(f"{folder}: of {len(found)} runs none is done and has a collective")
    return fit


def _execution(path: Path, manifest: dict[str, Any], data_dir: Path) -> Execution:
    """That which gives the bits of the run."""
    try:
        chunk, device = manifest["execution"]["chunk"], manifest["execution"]["device"]
    except (KeyError, TypeError):
        raise ConfigError(f"{path / 'manifest.json'}: does not say how the run was executed") from None
    if device == "cuda":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Execution(engine="local", chunk=chunk, device=device, data_dir=data_dir)


def _attack(
    path: Path,
    manifest: dict[str, Any],
    experiment: Experiment,
    execution: Execution,
    view: View | None,
    shadows: int,
    canaries: int,
) -> dict[str, Any]:
    if experiment.model.learns_by != "gradients":
        raise ConfigError(f"model.name = {experiment.model.name!r}: only models that learn by gradients are audited")
    setting = _quiet(prepare(experiment, execution))
    if manifest["data_sha256"] != setting.federation.train.digest:
        raise ConfigError(f"{path}: the run was on other data than {experiment.data.name} is now (data_sha256)")
    changes = experiment.strategy.changes_users
    alone = None if changes else _quiet(prepare(experiment.baseline, execution))
    usual: dict[str, watching.View] = {"server": "noised", "model_holder": "sum"}
    name: watching.View = view.value if view is not None else usual.get(setting.mechanism.observer, "messages")
    try:
        seen = watch(setting, execution, name)
        control = None if alone is None or name == "models" else watch(alone, execution, name, setting)
        found, curves = singled_out(setting, name, seen, control)
        if name in ("messages", "noised"):
            found += linked(setting, seen)
        if shadows:
            found += membership(setting, alone, execution, shadows)
        if canaries:
            found += released_canaries(setting, execution, canaries, _claimed(manifest))
    except Diverged as error:
        raise ConfigError(f"{path}: a repetition of the run diverged ({error})") from None

    from fedacdp.report.audited import odds_line

    reports = int(seen.pooled.counts.max(initial=0))
    return {
        "seed": experiment.seed,
        "alpha": experiment.strategy.alpha,
        "mechanism": experiment.privacy.name,
        "epsilon": manifest["guarantee"]["epsilon"],
        "delta": manifest["guarantee"]["delta"],
        "view": name,
        "users": int(setting.on_platform.sum()),
        "members": int(setting.member.sum()),
        "reproduced": _same(path, setting, seen),
        "ceiling": ceiling(setting, name, reports).why,
        "notes": list(_notes(setting, name, changes)),
        "odds": odds_line(manifest["guarantee"], name, found),
        "findings": [finding.to_json() for finding in found],
        "curves": {score: roc.curve() for score, roc in curves.items()},
    }


def _quiet(setting: Setting) -> Setting:
    """The setting that evaluates at the end only, which changes no bit of the models."""
    fields = {name: getattr(setting.experiment, name) for name in Experiment.model_fields}
    training = setting.experiment.training
    later = training.model_copy(update={"evaluate_every": training.rounds})
    return replace(setting, experiment=Experiment(**fields | {"training": later}))


def _claimed(manifest: dict[str, Any]) -> float:
    return float(manifest["guarantee"]["epsilon"])


def _same(path: Path, setting: Setting, seen: Seen) -> bool | None:
    """Whether the repetition gave the model of the run, bit for bit; None if that was not kept."""
    from safetensors.numpy import load_file

    file = path / "model.safetensors"
    if not file.exists():
        return None
    try:
        kept = load_file(file)
        return b"".join(kept[name].tobytes() for name in setting.net.shapes) == seen.parameters.tobytes()
    except Exception as error:  # safetensors raises its own, which derive from nothing narrower
        raise ConfigError(f"{file}: cannot be read ({error})") from None


def _notes(setting: Setting, view: str, changes: bool) -> Iterator[str]:
    if view == "noised" and not setting.mechanism.own_noise:
        yield f"with {setting.mechanism.name} users add no noise to their updates: noised is the same as messages"
    if view == "noised" and getattr(setting.mechanism, "noise_per", "message") == "sum":
        yield "the run drew the noise of each round's sum; here each message has its own, of the same distribution"
    if changes:
        yield "without the collective the platform has other users: there is no control"
    if view in ("messages", "noised"):
        yield "direction: of somebody who knows the campaign and tries it out on records of people who are not judged"
