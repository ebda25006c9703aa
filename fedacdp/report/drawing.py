"""A figure as a drawing: in the page as SVG, and for papers as files of one column's width."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import vl_convert
from markupsafe import Markup

from fedacdp.config import ConfigError
from fedacdp.results import write

COLUMN = 85.0
"""Width of a column of a paper, in millimetres."""

_POINTS = 72 / 25.4  # per millimetre
_DOTS = 600  # of a PNG, per inch


@dataclass(frozen=True)
class Figure:
    """A chart with the name of what it shows, and its text alternative."""

    name: str
    chart: Any
    alternative: str

    @cached_property
    def svg(self) -> Markup:
        """SVG for an HTML page; nothing is loaded from anywhere. Vega escapes the texts."""
        return Markup(vl_convert.vegalite_to_svg(self.chart.to_dict(), allowed_base_urls=[]))


def save(figures: list[Figure], folder: Path, about: dict[str, Any]) -> list[Path]:
    """Write each figure as SVG, PDF and PNG, COLUMN wide, named after what it shows, with a JSON file of `about` and
    its text; returns the files. ConfigError if the folder cannot be written."""
    found: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for figure in figures:
            stem, count = slug(figure.name), 1
            while folder / f"{stem}.svg" in found:
                count += 1
                stem = f"{slug(figure.name)}_{count}"
            caption = about | {"figure": figure.name, "text": figure.alternative.replace("\u00a0", " ")}
            contents = drawn(figure) | {"json": (json.dumps(caption, indent=1, ensure_ascii=False) + "\n").encode()}
            for ending, content in contents.items():
                found.append(folder / f"{stem}.{ending}")
                write(found[-1], content)
    except OSError as error:
        raise ConfigError(f"--figures = {folder}: cannot be written ({error.strerror})") from None
    return found


def drawn(figure: Figure) -> dict[str, bytes]:
    """The figure as `svg`, `pdf` and `png`, all from one specification, COLUMN wide."""
    specification, svg = figure.chart.to_dict(), str(figure.svg)
    size = re.search(r'<svg[^>]*? width="([\d.]+)" height="([\d.]+)"', svg)
    if size is None:
        raise ValueError("the drawing has no size")
    width, height = float(size[1]), float(size[2])
    inner, points = f'width="{size[1]}" height="{size[2]}"', COLUMN * _POINTS
    across = svg.replace(inner, f'width="{COLUMN:g}mm" height="{COLUMN * height / width:.2f}mm"', 1)
    in_points = svg.replace(inner, f'width="{points:.2f}" height="{points * height / width:.2f}"', 1)
    scale = points / width
    return {
        "svg": across.encode(),
        "pdf": vl_convert.svg_to_pdf(in_points),
        "png": vl_convert.vegalite_to_png(specification, scale=scale, ppi=_DOTS, allowed_base_urls=[]),
    }


def slug(name: str) -> str:
    """A file name of small letters, digits and _."""
    return re.sub(r"[^a-z0-9.]+", "_", name.lower().replace("\u03b5", "epsilon")).strip("_.")[:100] or "figure"
