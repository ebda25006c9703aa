"""A task shared out among nodes, and their answers joined, without a look at what is in them."""

from __future__ import annotations

import numpy as np

from fedacdp.wire import pack, unpack


def shares(task: bytes, nodes: int) -> list[bytes]:
    """The chunks of a task in at most `nodes` tasks of about the same number of chunks, in their order."""
    arrays, about = unpack(task)
    chunks = about["chunks"]
    parts = min(chunks, nodes)
    found = []
    for part in range(parts):
        mine = range(chunks * part // parts, chunks * (part + 1) // parts)
        ids = {f"{place}/ids": arrays[f"{number}/ids"] for place, number in enumerate(mine)}
        found.append(pack({"parameters": arrays["parameters"]} | ids, about | {"chunks": len(mine)}))
    return found


def joined(answers: list[bytes]) -> bytes:
    """The answers to the parts of a task as one; the first that raised stands for all."""
    arrays: dict[str, np.ndarray] = {}
    chunks = 0
    for answer in answers:
        found, about = unpack(answer)
        if about["outcome"] != "partials":
            return answer
        for name, array in found.items():
            place, _, what = name.partition("/")
            arrays[f"{chunks + int(place)}/{what}"] = array
        chunks += about["chunks"]
    return pack(arrays, {"outcome": "partials", "chunks": chunks})
