"""The page of a study: one HTML file that opens from disk, holds everything and loads nothing."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from fedacdp.config import ConfigError
from fedacdp.report import words
from fedacdp.report.answer import certainty
from fedacdp.report.drawing import save, slug
from fedacdp.report.explorer import island
from fedacdp.report.page import drawings, section
from fedacdp.report.reading import studies
from fedacdp.results import write


def write_page(folder: Path, out: Path) -> Path:
    """Write the page of every study at or below `folder` to the file `out` and return it.

    ConfigError if there is no finished run, a file is damaged, or `out` cannot be written.
    """
    page = render([section(study) for study in studies(folder)])
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write(out, page.encode("utf-8", "replace"))
    except OSError as error:
        raise ConfigError(f"--out: {out}: cannot be written ({error.strerror})") from None
    return out


def write_figures(folder: Path, out: Path) -> list[Path]:
    """Write the figures of the page of every study at or below `folder` to the folder `out`, each as SVG, PDF and PNG
    of one column's width with its text and number of seeds as JSON; of several studies, each has a folder of its own.
    Returns the files. ConfigError as for `write_page`."""
    found = studies(folder)
    written = []
    for study in found:
        about = {"study": study.name, "question": study.question, "seeds": study.seeds, "certainty": certainty(study)}
        written += save(drawings(section(study)), out / slug(study.name) if len(found) > 1 else out, about)
    return written


def render(sections: list[dict[str, object]]) -> str:
    """The page as HTML. All text is escaped; the policy admits the page's own style sheet and script and nothing
    else, and a page without an explorer has no script."""
    files = resources.files(__package__)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {
        "percent": words.percent, "share": words.share, "interval": words.interval, "number": words.number
    }  # fmt: skip
    style, script, template = (
        files.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js", "page.html")
    )
    measured = {f"s{place}": found["explorer"] for place, found in enumerate(sections, 1) if found["explorer"]}
    admitted = f"script-src {_digest(script)}; " if measured else ""
    policy = (
        f"default-src 'none'; style-src {_digest(style)}; {admitted}img-src data:; base-uri 'none'; form-action 'none'"
    )
    return environment.from_string(template).render(
        sections=sections,
        style=Markup(style),
        script=Markup(script) if measured else "",
        measured=island(measured),
        policy=policy,
    )


def _digest(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


__all__ = ["write_figures", "write_page"]
