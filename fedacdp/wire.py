"""Arrays with a few plain values as bytes, in the safetensors format: nothing that is read can run."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save


def pack(arrays: dict[str, np.ndarray], about: Any) -> bytes:
    """Arrays by name and `about`, any JSON value, as bytes."""
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, {"about": json.dumps(about)})


def unpack(content: bytes) -> tuple[dict[str, np.ndarray], Any]:
    """What `pack` was given; ValueError if the bytes are damaged."""
    try:
        arrays = load(content)
        size = int.from_bytes(content[:8], "little")
        return arrays, json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["about"])
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"damaged: {error}") from None
