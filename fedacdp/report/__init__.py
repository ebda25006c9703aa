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
from fedacdp.report.numbers import studies
from fedacdp.report.page import section
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


def render(sections: list[dict[str, object]]) -> str:
    """The page as HTML. All text is escaped; the policy admits the page's own style sheet and nothing else."""
    files = resources.files(__package__)
    style = files.joinpath("page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {
        "percent": words.percent, "share": words.share, "interval": words.interval, "number": words.number
    }  # fmt: skip
    template = environment.from_string(files.joinpath("page.html").read_text(encoding="utf-8"))
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    return template.render(sections=sections, style=Markup(style), policy=policy)


__all__ = ["write_page"]
