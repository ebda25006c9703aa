"""How far a run has come, kept on disk so that an interrupted run goes on from there. Nothing is pickled."""

from __future__ import annotations

import json
import os
from pathlib import Path

from fedacdp.config import ConfigError
from fedacdp.results import write
from fedacdp.rounds import Row, State
from fedacdp.wire import pack, unpack

_ARRAYS = ("parameters", "messages", "memory", "server", "last")


class Checkpoint:
    """The checkpoint in a run's folder: `checkpoint.safetensors` is the state, replaced as a whole, and
    `checkpoint.jsonl` the rows of all rounds, appended to, so that round 10,000 is kept as quickly as round 10. What
    lies in the second beyond the size that the first tells was not finished, and does not count."""

    def __init__(self, folder: Path):
        self._state, self._rows = folder / "checkpoint.safetensors", folder / "checkpoint.jsonl"
        self._kept, self._size = 0, 0  # rows that are there, and their bytes

    def load(self) -> tuple[State, list[Row]] | None:
        """The state after the last round that was kept and the rows up to it, None if there are none; ConfigError if
        they are damaged."""
        if not self._state.exists():
            return None
        try:
            arrays, about = unpack(self._state.read_bytes())
            with open(self._rows, "rb") as file:
                content = file.read(about["size"])
            rows = [
                Row(number, seconds, [(metric, group, value) for metric, group, value in values])
                for number, seconds, values in map(json.loads, content.splitlines())
            ]
            if len(content) != about["size"] or len(rows) != about["round"]:
                raise ValueError(f"{len(rows)} rows for {about['round']} rounds")
            kept = {name: arrays[name] for name in _ARRAYS}
            state = State(round=about["round"], sent=about["sent"], draws=about["draws"], **kept)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self._state}: damaged checkpoint ({error}); delete it to start this run again"
            ) from None
        self._kept, self._size = len(rows), len(content)
        return state, rows

    def save(self, state: State, rows: list[Row]) -> None:
        """Keep the state, and those of the rows so far that are not there yet."""
        lines = [json.dumps([row.round, row.seconds, row.values]) + "\n" for row in rows[self._kept :]]
        with open(self._rows, "r+b" if self._size else "wb") as file:
            file.truncate(self._size)
            file.seek(self._size)
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())
            self._kept, self._size = len(rows), file.tell()
        about = {"round": state.round, "sent": state.sent, "draws": state.draws, "size": self._size}
        kept = {name: getattr(state, name) for name in _ARRAYS}
        write(self._state, pack(kept, about))

    def remove(self) -> None:
        """Called when the run is over."""
        self._state.unlink(missing_ok=True)
        self._rows.unlink(missing_ok=True)
