"""Wrong input, told in lines that a person can read."""

from __future__ import annotations

from pydantic import BaseModel, ValidationError

from fedacdp.parts import PartError


def explain(error: ValidationError, model: type[BaseModel], prefix: tuple[str, ...] = ()) -> list[str]:
    """Each fault of a ValidationError as `field = value: what is allowed`."""
    lines = []
    for fault in error.errors(include_url=False):
        place = prefix + tuple(str(step) for step in fault["loc"])
        inner = fault.get("ctx", {}).get("error")
        if isinstance(inner, PartError):
            lines += explain(inner.error, inner.part, place)
        elif fault["type"] == "extra_forbidden":
            owner = _owner(model, fault["loc"][:-1])
            allowed = f"; allowed: {', '.join(owner.model_fields)}" if owner else ""
            lines.append(f"{'.'.join(place)} = {fault['input']!r}: unknown key{allowed}")
        elif fault["type"] == "missing":
            lines.append(f"{'.'.join(place)}: must be given")
        elif fault["type"] == "value_error" and (not fault["loc"] or isinstance(fault["input"], dict)):
            lines.append(".".join((*place, str(inner))))
        else:
            message = str(inner) if inner is not None else fault["msg"]
            lines.append(f"{'.'.join(place)} = {fault['input']!r}: {message}")
    return [" ".join(line.split()) for line in lines]


def _owner(model: type[BaseModel], path: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The model that holds the field at `path`, if it can be told."""
    for step in path:
        field = model.model_fields.get(str(step))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return None
        model = field.annotation
    return model
