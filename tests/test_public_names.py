"""What is public: everything that benchmarks, examples and the documentation's snippets import is in `__all__`."""

import ast
import json
import re
from pathlib import Path

import pytest

import secateur

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted([*ROOT.glob("benchmarks/*.py"), *ROOT.glob("examples/*.py")])
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]


def foreign_names(source: str) -> list[str]:
    """Uses of secateur in a script that are no public names: submodules, and names that `__all__` lacks."""
    found = []
    for node in ast.walk(ast.parse(source)):
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
    assert foreign_names(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_use_public_names_only(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert "secateur" in code
    assert foreign_names(code) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_snippets_of_the_documentation_use_public_names_only(path):
    if path.stem.startswith("adding-"):
        pytest.skip("is for who changes the package itself")
    for snippet in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
        assert foreign_names(snippet) == []


def test_every_public_name_is_in_the_reference():
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert [name for name in secateur.__all__ if not re.search(rf"\b{name}\b", text)] == []


def test_what_is_not_public_is_found():
    script = "import secateur.io\nfrom secateur import api\nimport secateur\nsecateur.runs.plan\nsecateur.prune\n"
    assert foreign_names(script) == ["secateur.io", "secateur: api", "secateur.runs"]


def test_editors_see_every_public_name():
    tree = ast.parse(Path(secateur.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    assert sorted(alias.name for node in block.body for alias in node.names) == secateur.__all__
