"""Imports run downwards only: what each package of `src/secateur` may import, and that it imports nothing else."""

import ast
from pathlib import Path

import pytest

import secateur

ROOT = Path(secateur.__file__).parent
# Each line may import those before it, and nothing of its own line but itself.
FLOORS = (
    ("base",),
    ("structure", "results"),
    ("models",),
    ("process",),
    ("io",),
    ("data",),
    ("teacher", "reporting"),
    ("compensation",),
    ("criteria",),
    ("recovery", "evaluation"),
    ("schedules",),
    ("recipes",),
    ("runs",),
    ("api",),
    ("commands",),
    ("cli",),
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
# Packages that may import less than their floor allows.
ONLY = {"structure": (), "results": ("base",), "reporting": ("base", "results", "io")}


def arrows(package: str) -> set[tuple[str, str]]:
    """What the files of a package import: its name at the root, and the file that does."""
    place = ROOT / package
    files = place.rglob("*.py") if place.is_dir() else [ROOT / f"{package}.py"]
    found = set()
    for path in files:
        inside = path.relative_to(ROOT).parts[:-1]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for module in imported(node, inside):
                if module and module != package:
                    found.add((module, str(path.relative_to(ROOT))))
    return found


def imported(node, inside):
    """The packages of ours that a statement imports."""
    if isinstance(node, ast.Import):
        return [name.name.split(".")[1] for name in node.names if name.name.startswith("secateur.")]
    if not isinstance(node, ast.ImportFrom):
        return []
    if node.level == 0:
        return [node.module.split(".")[1]] if node.module.startswith("secateur.") else []
    around = inside[: len(inside) - node.level + 1]
    whole = [*around, *(node.module or "").split(".")] if node.module else list(around)
    return [whole[0]] if whole else [name.name for name in node.names if name.name in FLOOR_OF]


@pytest.mark.parametrize("package", FLOOR_OF)
def test_arrows_run_downwards(package):
    floor = FLOOR_OF[package]
    wrong = [
        f"{path} imports {module}"
        for module, path in sorted(arrows(package))
        if module in FLOOR_OF and not allowed(package, module, floor)
    ]
    assert wrong == []


def allowed(package, module, floor):
    return module in ONLY[package] if package in ONLY else FLOOR_OF[module] < floor


def test_every_package_stands_on_a_floor_and_the_root_is_small():
    packages = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
    modules = {path.stem for path in ROOT.glob("*.py")}
    assert packages | modules <= {*FLOOR_OF, "__init__", "__main__"}
    assert len(modules) <= 8
