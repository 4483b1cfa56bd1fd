"""What is public: everything that benchmarks, examples and the documentation's snippets import is in `__all__`."""

import ast
from pathlib import Path

import pytest

import secateur

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted([*ROOT.glob("benchmarks/*.py"), *ROOT.glob("examples/*.py")])


def foreign_names(path: Path) -> list[str]:
    """Uses of secateur in a script that are no public names: submodules, and names that `__all__` lacks."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.startswith("secateur.")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "secateur":
            names = [alias.name for alias in node.names]
            found += [f"{node.module}: {name}" for name in names if node.module != "secateur" or not _public(name)]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "secateur":
            found += [] if _public(node.attr) else [f"secateur.{node.attr}"]
    return found


def _public(name: str) -> bool:
    return name in secateur.__all__ or name == "__version__"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_use_public_names_only(path):
    assert foreign_names(path) == []


def test_what_is_not_public_is_found(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import secateur.io\nfrom secateur import api\nimport secateur\nsecateur.runs.plan\nsecateur.prune\n"
    )
    assert foreign_names(script) == ["secateur.io", "secateur: api", "secateur.runs"]


def test_editors_see_every_public_name():
    tree = ast.parse(Path(secateur.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    assert sorted(alias.name for node in block.body for alias in node.names) == secateur.__all__
