"""A hook of MkDocs: equations become MathML when the site is built, so that pages need no script and no network."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert

EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(html: str, **_: Any) -> str:
    """Replace what `pymdownx.arithmatex` marks."""
    return EQUATION.sub(_mathml, html)


def _mathml(found: re.Match[str]) -> str:
    kind, latex = found.groups()
    return convert(unescape(latex).strip(), display="block" if kind == "div" else "inline")
