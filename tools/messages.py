"""A hook of MkDocs: every message of the package, from its source, under the heading that explains its kind.

In a page, `<!-- messages: data/ runs/data.py -->` becomes the list of what these folders and files say, but for what a
longer path elsewhere on the page takes out of them. Parts that depend on the case are shown as an ellipsis.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parent.parent / "src" / "secateur"
MARK = re.compile(r"<!-- messages: (.*?) -->", re.DOTALL)
FUNCTIONS = {"require": 1, "_fail": 0}  # those that raise for others, and which argument is the message
CASE = "…"


def said_by(path: Path) -> list[str]:
    """The messages that a file raises for people, in their order, each once."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = dict.fromkeys(message for message in _messages(tree) if re.search(r"[a-z]{2}", message))
    return list(found)


def sources() -> dict[str, list[str]]:
    """Every file that says something, by its path inside the package."""
    files = {str(path.relative_to(SOURCE)): said_by(path) for path in sorted(SOURCE.rglob("*.py"))}
    return {name: messages for name, messages in files.items() if messages}


def explained(markdown: str) -> dict[str, list[str]]:
    """The files of each mark of a page, by what the mark says: each file is where its longest path is."""
    marks = {text: text.split() for text in MARK.findall(markdown)}
    found: dict[str, list[str]] = {text: [] for text in marks}
    for name in sources():
        lengths = {text: max(len(path) * name.startswith(path) for path in paths) for text, paths in marks.items()}
        best = max(lengths, key=lambda text: lengths[text], default="")
        if lengths.get(best):
            found[best].append(name)
    return found


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the messages in the place of each mark."""
    if not MARK.search(markdown):
        return markdown
    files = explained(markdown)
    return MARK.sub(lambda mark: _listed(files[mark.group(1)]), markdown)


def _listed(names: list[str]) -> str:
    messages = [message for name in names for message in said_by(SOURCE / name)]
    items = "\n".join(f"- {_escaped(message)}" for message in messages)
    return f"<details markdown>\n<summary>All {len(messages)} messages of this kind</summary>\n\n{items}\n\n</details>"


def _escaped(message: str) -> str:
    return re.sub(r"([\\`*_<>|$\[\]])", r"\\\1", message)


def _messages(tree: ast.Module) -> Iterator[str]:
    scopes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)] or [tree]
    constants = _texts(tree.body)
    for scope in scopes:
        texts = constants | _texts(ast.walk(scope))
        for node in ast.walk(scope):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                place = (
                    0 if node.func.id.endswith("Error") and node.func.id != "KeyError" else FUNCTIONS.get(node.func.id)
                )
                if place is not None and len(node.args) > place and _is_for_people(node.func.id):
                    yield _text(node.args[place], texts).strip()


def _texts(nodes: Iterable[ast.AST]) -> dict[str, ast.expr]:
    """What is assigned to each name."""
    return {
        target.id: node.value
        for node in nodes
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _is_for_people(name: str) -> bool:
    return name in FUNCTIONS or name in ("SecateurError", "DataError", "ModelError", "TargetError", "TrainingError")


def _text(node: ast.expr, texts: dict[str, ast.expr], depth: int = 0) -> str:
    """What an expression says, as far as the source tells."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, texts, depth) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _text(node.value, texts, depth)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left, texts, depth) + _text(node.right, texts, depth)
    if isinstance(node, ast.Name) and depth < 3 and isinstance(texts.get(node.id), (ast.JoinedStr, ast.Constant)):
        return _text(texts[node.id], texts, depth + 1)
    return CASE
