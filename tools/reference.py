"""A hook of MkDocs: the reference page has every public name, those that nobody put into a group at its end."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "secateur" / "__init__.py"
ENTRY = "::: secateur.{place}.{name}\n    options:\n      heading: secateur.{name}\n      toc_label: {name}\n"


def public_names() -> dict[str, str]:
    """Where in the package each public name lives."""
    for node in ast.parse(PACKAGE.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_PLACES":
            return {name: place for place, names in ast.literal_eval(node.value).items() for name in names}
    raise LookupError(f"{PACKAGE} has no _PLACES")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Bring each entry of the reference page to where its name lives now, and add the names that are missing."""
    if page.file.src_uri != "reference.md":
        return markdown
    names = public_names()
    entries = re.compile(r"^- `(\w+)`$", re.MULTILINE)
    missing = sorted(names.keys() - set(entries.findall(markdown)))
    if missing:
        markdown += "\n## More\n\n" + "\n".join(f"- `{name}`" for name in missing) + "\n"
    return entries.sub(lambda entry: ENTRY.format(name=entry[1], place=names[entry[1]]), markdown)
