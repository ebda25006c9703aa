"""Named parts: a folder is a registry, a file is an entry, and a part's fields are its configuration."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError


class PartError(ValueError):
    """A part's table that does not validate: which part, and what pydantic found."""

    def __init__(self, part: type[Part], error: ValidationError):
        super().__init__(str(error))
        self.part, self.error = part, error


class Part(BaseModel):
    """A frozen, validated, named piece of an experiment. `name` is the name of the file that defines it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_enum_values=True)
    name: str


@cache
def discover(package: str, base: type[Part]) -> dict[str, type[Part]]:
    """The parts in `package`: file name -> the one class in that file that is a concrete `base`."""
    found: dict[str, type[Part]] = {}
    for module in sorted(entry.name for entry in pkgutil.iter_modules(importlib.import_module(package).__path__)):
        part = part_in(f"{package}.{module}", base)
        if part is not None:
            found[module] = part
    return found


def part_in(module: str, base: type[Part]) -> type[Part] | None:
    """The concrete subclass of `base` that `module` itself defines, None if there is none, TypeError if several."""
    classes = [
        value
        for value in vars(importlib.import_module(module)).values()
        if inspect.isclass(value) and issubclass(value, base) and value is not base
        if value.__module__ == module and not inspect.isabstract(value)
    ]
    if len(classes) > 1:
        raise TypeError(f"{module} defines {len(classes)} parts: one file, one part")
    return classes[0] if classes else None


def parse(kind: str, package: str, base: type[Part], value: Any) -> Any:
    """A part from its table in a study file, `{name = "...", ...}`; ValueError for an unknown or missing name,
    PartError for fields that do not validate."""
    if isinstance(value, base):
        return value
    if not isinstance(value, dict):
        raise ValueError(f'must be a table like {{ name = "..." }}, not {value!r}')
    known = discover(package, base)
    name = value.get("name")
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(known)}")
    try:
        return known[name].model_validate(value)
    except ValidationError as error:
        raise PartError(known[name], error) from None
