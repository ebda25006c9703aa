"""A lower layer never imports a higher one, and importing the package starts nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from fedacdp.config import PARTS, parts_of

ROOT = Path(__file__).parent.parent
LAYERS = [
    {"keys", "kept", "users", "parts", "wire", "products", "theory", "anonymity", "statistics"},
    {
        "strategy",
        "signals",
        "privacy",
        "aggregation",
        "data",
        "models",
        "metrics",
        "outcomes",
        "surfaced",
        "sharing",
        "child",
        "fleet",
    },
    {"config", "training", "faults", "grid", "local", "machine", "acting"},
    {"labels", "rounds", "setting", "ranking", "bounds", "contradictions", "certified", "watching"},
    {"results", "tasks", "memory", "checkpoint", "derived", "firms", "findings", "shadows", "canaries"},
    {"nodes", "study"},
    {"report", "display", "flower", "plan", "cells", "comparing", "audit", "summary"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted((ROOT / "fedacdp").rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Modules that a file imports at run time, dotted."""
    tree = ast.parse(path.read_text())
    typing_only = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part_of(path: Path) -> str:
    return path.relative_to(ROOT / "fedacdp").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path):
    if path.name == "__init__.py" and path.parent == ROOT / "fedacdp":
        return
    for module in imports(path):
        if module.startswith("fedacdp."):
            target = module.split(".")[1]
            assert LEVEL.get(target, -1) <= LEVEL[part_of(path)], f"{path.name} imports {module}"


def test_every_file_has_a_layer():
    assert {part_of(path) for path in FILES} - {"__init__"} <= set(LEVEL)


def test_only_one_file_imports_flower_or_ray():
    users = {path.name for path in FILES for module in imports(path) if module.split(".")[0] in ("flwr", "ray")}
    assert users <= {"flower.py"}


@pytest.mark.parametrize("path", sorted((ROOT / "strategies").glob("*.py")), ids=lambda path: path.stem)
def test_strategies_see_only_what_is_meant_for_them(path):
    allowed = {"strategy", "users", "keys", "signals"}
    for module in imports(path):
        if module.startswith("fedacdp"):
            assert module.split(".")[1] in allowed


def test_modules_stay_small():
    sizes = {path.name: len(path.read_text().splitlines()) for path in FILES}
    assert not {name: size for name, size in sizes.items() if size > 300}


def test_importing_starts_nothing_and_needs_neither_flower_nor_ray():
    code = (
        "import sys, threading\n"
        "import fedacdp.rounds, fedacdp.study, fedacdp.config\n"
        "assert not {'flwr', 'ray', 'opacus', 'dp_accounting'} & set(sys.modules), 'heavy imports'\n"
        "assert threading.active_count() == 1, 'threads'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("field", PARTS)
def test_every_part_is_named_by_its_file_documented_and_frozen(field):
    parts = parts_of(field)
    assert parts
    for name, part in parts.items():
        assert part.model_fields["name"].default == name
        assert part.__module__.endswith("." + name)
        assert (part.__doc__ or "").strip()
        assert part.model_config["frozen"]
        assert part.model_config["extra"] == "forbid"
