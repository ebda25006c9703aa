"""Where the peers live. Opacus and Flower are packages of ours; pfl-research needs an environment of its own, because
its range of dp-accounting excludes ours."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PFL = "0.6.0"
HOME = Path(__file__).resolve().parent.parent.parent / "build" / "peers" / "pfl"


class Missing(Exception):
    """What a measurement needs is not there; the text says what, and how to get it."""


@dataclass(frozen=True)
class Peers:
    """`pfl`: a Python that has pfl-research, if one was named; `build`: whether to make one otherwise."""

    pfl: Path | None
    build: bool

    def pfl_python(self) -> str:
        """A Python that has pfl-research. Missing if there is none and none is to be made, or making it failed."""
        python = self.pfl or HOME / "bin" / "python"
        if self.pfl is None and self.build and version(python, "pfl") is None:
            _build(HOME)
        if version(python, "pfl") is None:
            where = f"{self.pfl} has no pfl" if self.pfl else "pfl-research has no environment"
            raise Missing(f"{where}; --peers builds one, --pfl-python names one")
        return str(python)


def version(python: Path | str, package: str) -> str | None:
    """The version of a package in another Python, None if it is not there."""
    code = f"import importlib.metadata; print(importlib.metadata.version({package!r}))"
    try:
        return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _build(folder: Path) -> None:
    """An environment with pfl-research and our version of torch."""
    torch = importlib.metadata.version("torch").partition("+")[0]
    print(f"bench: building {folder} with pfl {PFL} and torch {torch}", file=sys.stderr)
    install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([*install, f"torch=={torch}", f"pfl[pytorch]=={PFL}"], check=True)
    except subprocess.CalledProcessError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise Missing(f"building pfl-research's environment failed: {error}") from None
