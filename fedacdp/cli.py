"""The command line."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fedacdp.audit import audit
from fedacdp.comparing import compare
from fedacdp.config import ConfigError, Execution, parts_of
from fedacdp.grid import find_study, read_study, setting, study_files
from fedacdp.grid import shard as part_of
from fedacdp.machine import schedule
from fedacdp.plan import plan
from fedacdp.summary import summary

app = typer.Typer(
    help="Simulate a collective of users that steers a model trained on their data under differential privacy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.command()(plan)
app.command()(compare)
app.command()(audit)
app.command()(summary)


class Format(StrEnum):
    """Formats of the table."""

    csv = "csv"
    json = "json"
    parquet = "parquet"
    md = "md"


class Listing(StrEnum):
    """What can be listed."""

    strategies = "strategies"
    mechanisms = "mechanisms"
    datasets = "datasets"
    models = "models"
    aggregations = "aggregations"
    experiments = "experiments"


@app.command()
def run(
    study: Annotated[str, typer.Argument(help="A study file, or the name of one in experiments/.")] = "quickstart",
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("results"),
    set_: Annotated[list[str], typer.Option("--set", help="KEY=TOML: change the base, e.g. strategy.alpha=0.1.")] = [],  # noqa: B006
    engine: Annotated[str, typer.Option(help="flower or local.")] = "flower",
    nodes: Annotated[int | None, typer.Option(help="Flower nodes.", show_default="2")] = None,
    chunk: Annotated[
        int | None, typer.Option(help="Users trained at once; part of what fixes the bits.", show_default="256")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    gpus_per_node: Annotated[float, typer.Option(help="Share of a GPU per Flower node.")] = 0.0,
    jobs: Annotated[int, typer.Option(help="Runs in flight at once.")] = 2,
    shard: Annotated[
        str | None, typer.Option(help="i/n: only that part of the runs; copy the folders of all parts together.")
    ] = None,
    max_runs: Annotated[int, typer.Option(min=1, help="Refuse a grid that multiplies to more.")] = 10_000,
    ray_address: Annotated[
        str | None, typer.Option(help="A running Ray cluster, HOST:PORT or auto; else nodes are on this machine.")
    ] = None,
    data_dir: Annotated[Path, typer.Option(help="Folder of downloaded data sets.")] = Path("~/.cache/fedacdp"),
) -> None:
    """Run a study, or what is missing of it; write its page."""
    from fedacdp import study as studies
    from fedacdp.display import Lines, closing_table
    from fedacdp.memory import fit
    from fedacdp.rounds import NodeFailure

    found = find_study(study)
    if set_:
        found = found.with_set(dict(setting(text) for text in set_))
    experiments = found.at_most(max_runs).experiments()
    if shard is not None:
        experiments = part_of(experiments, shard)
    options = {
        "engine": engine,
        "nodes": nodes,
        "chunk": chunk,
        "device": device,
        "gpus_per_node": gpus_per_node,
        "jobs": jobs,
        "data_dir": data_dir,
        "ray_address": ray_address,
    }
    execution, notes = schedule(experiments, options)
    folder, tasks = studies.plan(found, out, execution, experiments)
    execution, more = fit([task.experiment for task in tasks], execution, chunk is not None)
    for note in notes + more:
        typer.echo(f"Note: {note}", err=True)
    failed, ran, reasons = 0, bool(tasks), list[str]()
    if not tasks:
        typer.echo("Every run is there already.", err=True)
    for attempt in (1, 2):
        try:
            if tasks:
                with _engine(execution) as compute, Lines() as display:
                    failed = studies.execute(found, folder, tasks, execution, compute, display)
                    reasons = display.failed
            break
        except NodeFailure as error:
            typer.echo(f"A node was lost: {error}", err=True)
            if attempt == 2:
                fail("stopped; what is done is kept, and the same command goes on from the last checkpoints", 1)
            typer.echo("Going on from the last checkpoints with fresh nodes.", err=True)
            _, tasks = studies.plan(found, out, execution, experiments)
    closing_table(folder)
    page = folder / "report.html"
    if ran or not page.exists():
        _page(folder)
    typer.echo(f"Page: {page}", err=True)
    if failed:
        typer.echo(f"{failed} of {len(tasks)} runs failed; the same command tries them again:", err=True)
        for reason in reasons:
            typer.echo(f"  {' '.join(reason.split())}", err=True)
        raise typer.Exit(1)


@app.command()
def table(
    folder: Annotated[Path, typer.Argument(help="A folder of results.")],
    format: Annotated[Format, typer.Option(help="Format.")] = Format.csv,
) -> None:
    """Print the tidy table: one row per run, round, metric and group."""
    from fedacdp.results import as_csv
    from fedacdp.results import table as tidy

    frame = tidy(folder)
    if format is Format.parquet:
        frame.to_parquet(sys.stdout.buffer, index=False)
    elif format is Format.csv:
        sys.stdout.write(as_csv(frame))
    elif format is Format.json:
        frame.to_json(sys.stdout, orient="records", lines=False)
    else:
        from fedacdp.display import markdown

        typer.echo(markdown(frame))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A folder of results.")],
    out: Annotated[Path | None, typer.Option(help="The page; default FOLDER/report.html.")] = None,
    figures: Annotated[Path | None, typer.Option(help="A folder for its figures as SVG, PDF and PNG.")] = None,
) -> None:
    """Write the page: one HTML file that opens from disk; with --figures, its figures for a paper too."""
    typer.echo(str(_page(folder, out)))
    if figures is not None:
        from fedacdp.report import write_figures

        for path in write_figures(folder, figures):
            typer.echo(str(path))


@app.command("list")
def list_(what: Annotated[Listing | None, typer.Argument(help="Which parts.")] = None) -> None:
    """List strategies, mechanisms, data sets, models, aggregation rules and experiments with a line on each."""
    fields = {"strategies": "strategy", "mechanisms": "privacy", "datasets": "data", "models": "model"}
    fields["aggregations"] = "aggregation"
    for listing in [what] if what else list(Listing):
        if not what:
            typer.echo(f"{listing.value}:")
        if listing is Listing.experiments:
            for path in study_files():
                typer.echo(f"  {path.stem:22} {read_study(path).question}")
        else:
            for name, part in parts_of(fields[listing.value]).items():
                typer.echo(f"  {name:22} {' '.join((part.__doc__ or '').split(chr(10) * 2)[0].split())}")


@data_app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A data set.")],
    data_dir: Annotated[Path, typer.Option(help="Folder of downloaded data sets.")] = Path("~/.cache/fedacdp"),
) -> None:
    """Download a data set, checked."""
    known = parts_of("data")
    if name not in known:
        raise ConfigError(f"unknown data set {name!r}; known: {', '.join(known)}")
    try:
        typer.echo(known[name].model_validate({"name": name, "users": 1}).fetch(data_dir.expanduser()))  # type: ignore[attr-defined]
    except (ValueError, OSError) as error:
        raise ConfigError(f"{name}: {error}") from None


@contextlib.contextmanager
def _engine(execution: Execution) -> Iterator[Any]:
    if execution.engine == "local":
        from fedacdp.study import here

        with here(execution) as compute:
            yield compute
    else:
        from fedacdp.nodes import nodes

        with nodes(execution) as compute:
            yield compute


def _page(folder: Path, out: Path | None = None) -> Path:
    from fedacdp.report import write_page

    return write_page(folder, out or folder / "report.html")


def main() -> None:
    """The entry point: wrong input ends with one line and exit status 2, never with a traceback."""
    try:
        status = app(standalone_mode=False)
    except ConfigError as error:
        fail(str(error), 2)
    except typer.Abort:
        fail("interrupted", 130)
    except KeyboardInterrupt:
        fail("interrupted; run the same command again to go on", 130)
    except Exception as error:
        import click

        if isinstance(error, click.ClickException):
            fail(error.format_message(), 2)
        raise
    if status:
        sys.exit(status)  # of typer.Exit, which does not end a program where it is not standalone


def fail(message: str, status: int) -> None:
    """One line on stderr, and the end."""
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(status)
