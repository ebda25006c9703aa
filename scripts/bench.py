"""Measure what is fast and against whom: the rows P1 to P12 as a table and as JSON.

    .venv/bin/python scripts/bench.py                       # everything that can be measured here
    .venv/bin/python scripts/bench.py --peers               # builds pfl-research's environment first, if it is missing
    .venv/bin/python scripts/bench.py --only P1,P6 --json bench.json

Every value is a ratio of two sides measured in turns, A B A B, on this machine, each side a process of its own with one
thread per process. It means little unless nothing else runs here: the load average before the start is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from benchmarks.conditions import Conditions
from benchmarks.machine import describe
from benchmarks.peers import Missing, Peers
from benchmarks.rows import ROWS, Measured
from benchmarks.sides import SideFailed

LINE = "{:4} {:52} {:>14} {:>21} {:>20}  {}"
NAMED = "FEDACDP_PFL_PYTHON"


def main() -> int:
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the sides are ended, as by Ctrl-C
    peers = Peers(options.pfl_python, options.peers)
    conditions = Conditions(options.repeats, options.quick, options.chunk, options.data_dir, peers)
    about = describe(peers)
    for name, values in about.items():
        print(f"{name}: {', '.join(f'{k} {v}' for k, v in values.items()) if isinstance(values, dict) else values}")
    print("value: ratio of medians of turns taken A B A B; spread: smallest and largest ratio of a pair of turns")
    if options.quick:
        print("quick: sizes too small to measure anything, nothing is judged")
    print(LINE.format("row", "what", "value", "spread", "target", "met"), flush=True)
    found, failed = [], False
    for name in options.only:
        lines, fine = row(name, conditions)
        found += lines
        failed |= not fine
    if options.json:
        document = about | {"quick": options.quick, "repeats": options.repeats, "rows": found}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return int(failed)


def row(name: str, conditions: Conditions) -> tuple[list[dict[str, Any]], bool]:
    """Measure a row and print it: its values for JSON, and whether nothing failed."""
    fine, reason, values = True, "", []
    try:
        values = ROWS[name].measure(conditions)
    except Missing as missing:
        reason = str(missing)
    except SideFailed as error:
        fine, (reason, _, rest) = False, str(error).partition("\n")
        print(rest, file=sys.stderr)
    lines = []
    for place, target in enumerate(ROWS[name].targets):
        bound = f"{target.sign} {target.bound:,g} {target.unit}"
        line: dict[str, Any] = {"row": name, "what": target.what, "target": bound, "unit": target.unit}
        if values:
            measured: Measured = values[place]
            met = None if conditions.quick else target.met(measured.value)
            line |= {"value": measured.value, "spread": measured.spread, "met": met, "not_measured": None}
            line |= {"rates": measured.rates, "notes": measured.notes}
            low, high = measured.spread
            shown = (f"{measured.value:,.4g} {target.unit}", f"{low:,.4g} - {high:,.4g}", bound)
            print(LINE.format(name, target.what, *shown, {None: "-", True: "met", False: "NOT MET"}[met]))
            for note in measured.notes:
                print(f"     {note}")
        else:
            line |= {"value": None, "spread": None, "met": None, "not_measured": reason, "rates": {}, "notes": []}
            print(LINE.format(name, target.what, "", "", bound, f"not measured: {reason}"))
        lines.append(line)
    sys.stdout.flush()
    return lines, fine


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=names, default=list(ROWS), metavar="P1,P6", help="only these rows")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything here")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it works, measures nothing")
    parser.add_argument(
        "--repeats", type=positive, metavar="N", help="turns of each side (5), fewer where one takes minutes"
    )
    parser.add_argument("--chunk", type=positive, metavar="K", help="users trained at once (fedacdp's default)")
    parser.add_argument("--data-dir", type=Path, default=Path("~/.cache/fedacdp"), help="where MNIST is")
    parser.add_argument("--peers", action="store_true", help="build pfl-research's environment if it is missing")
    named = os.environ.get(NAMED)
    parser.add_argument(
        "--pfl-python",
        type=Path,
        metavar="PATH",
        default=Path(named) if named else None,
        help=f"a Python that has pfl-research ({NAMED})",
    )
    options = parser.parse_args()
    options.repeats = options.repeats or (1 if options.quick else 5)
    if options.pfl_python and not options.pfl_python.is_file():
        parser.error(f"--pfl-python = {options.pfl_python}: no such file")
    if options.json and not options.json.parent.is_dir():
        parser.error(f"--json = {options.json}: no such folder")
    return options


def names(text: str) -> list[str]:
    """Rows by name, in their own order."""
    asked = {name.strip().upper() for name in text.split(",")}
    if unknown := asked - set(ROWS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: no such row; there are {', '.join(ROWS)}")
    return [name for name in ROWS if name in asked]


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
