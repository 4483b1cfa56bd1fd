"""The pages of the site: every public name and every kind of message is on them."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import secateur

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_groups_public_names_only() -> None:
    named = re.findall(r"^- `(\w+)`$", (DOCS / "reference.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(named) == len(set(named)) > 50
    assert set(named) <= set(secateur.__all__)


def test_the_page_has_names_that_nobody_grouped() -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="reference.md"))
    markdown = tool("reference").on_page_markdown("- `prune`\n", page=page)
    assert sorted(re.findall(r"heading: secateur\.(\w+)", markdown)) == secateur.__all__
    assert "::: secateur.api.one_stage.prune\n" in markdown


def test_every_message_stands_under_one_heading() -> None:
    messages = tool("messages")
    explained = messages.explained((DOCS / "troubleshooting.md").read_text(encoding="utf-8"))
    assert all(explained.values())
    assert sorted(name for names in explained.values() for name in names) == sorted(messages.sources())


def test_messages_are_read_from_the_source(tmp_path: Path) -> None:
    source = tmp_path / "said.py"
    source.write_text(
        "def check(count, name):\n"
        "    what = f'{name} is damaged'\n"
        "    if count:\n"
        "        raise ValueError('not for people')\n"
        "    require(count, f'{what}: ' + 'remove it')\n"
        "    raise ModelError(f'{count} of {len(name)} are gone')\n",
        encoding="utf-8",
    )
    assert tool("messages").said_by(source) == ["… is damaged: remove it", "… of … are gone"]


@pytest.mark.parametrize("latex", [r"\[x < \sigma^2\]", r"\(a_t\)"])
def test_equations_become_mathml(latex: str) -> None:
    pytest.importorskip("latex2mathml")
    kind = "div" if latex.startswith(r"\[") else "span"
    html = tool("mathml").on_page_content(f'<p><{kind} class="arithmatex">{latex.replace("<", "&lt;")}</{kind}></p>')
    assert "<math" in html
    assert "arithmatex" not in html


def test_no_page_is_empty() -> None:
    pages = [ROOT / "README.md", *DOCS.rglob("*.md")]
    assert [page.name for page in pages if not page.read_text(encoding="utf-8").strip()] == []
