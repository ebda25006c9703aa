"""A chart as the file that --picture names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import vl_convert

from fedacdp.config import ConfigError
from fedacdp.report.figures import styled
from fedacdp.results import write


def save(chart: Any, path: Path) -> None:
    """The chart in the style of all figures as SVG or PNG, by the file's ending; nothing is loaded from anywhere.
    ConfigError if it cannot be written."""
    drawn = styled(chart).to_dict()
    if path.suffix == ".svg":
        picture = vl_convert.vegalite_to_svg(drawn, allowed_base_urls=[]).encode()
    else:
        picture = vl_convert.vegalite_to_png(drawn, scale=2, allowed_base_urls=[])
    try:
        write(path, picture)
    except OSError as error:
        raise ConfigError(f"--picture = {path}: cannot be written ({error.strerror})") from None
