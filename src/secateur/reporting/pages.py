"""What every page is made of: the templates, figures as SVG, and images inside the page itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from torch import Tensor

from .grids import to_image
from .style import inline_svg

LARGEST_TILE = 160  # pixels of an image in the page
TINY = 48  # pixels; smaller images are kept as they are, larger ones as JPEG
MOST_SAMPLES = 10
MOST_CLASSES = 20
OF_A_CLASS = 6


@dataclass(frozen=True)
class Strip:
    """A row of images, as data URIs, with its label."""

    label: str
    tiles: tuple[str, ...]
    captions: tuple[str, ...] = ()


def render(template: str, **values: Any) -> str:
    """The page of `template`; text in `values` is escaped."""
    environment = Environment(
        loader=PackageLoader("secateur.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(template).render(**values)


def as_svgs(figures: Mapping[str, Figure], alternatives: Mapping[str, str]) -> dict[str, Markup]:
    """Figures as elements of a page, each with its text alternative."""
    return {name: Markup(inline_svg(figure, str(escape(alternatives[name])), name)) for name, figure in figures.items()}


def strip_of(label: str, images: Tensor, class_labels: Tensor | None = None, most: int = MOST_SAMPLES) -> Strip:
    """The first `most` images as a row, with their classes as captions."""
    captions = () if class_labels is None else tuple(str(value) for value in class_labels[:most].tolist())
    return Strip(label, tuple(_data_uri(image) for image in images[:most]), captions)


def strips_by_class(images: Mapping[str, Tensor], class_labels: Tensor | None) -> dict[str, list[Strip]]:
    """For each class, a row of each model's images of it; none where every class is drawn once at most."""
    if class_labels is None or not images:
        return {}
    count = min(len(class_labels), *(len(batch) for batch in images.values()))
    labels = class_labels[:count]
    classes = sorted(set(labels.tolist()))
    if len(classes) == count:
        return {}
    return {
        str(label): [strip_of(name, batch[:count][labels == label], most=OF_A_CLASS) for name, batch in images.items()]
        for label in classes[:MOST_CLASSES]
    }


def _data_uri(image_CHW: Tensor) -> str:
    image = to_image(image_CHW)
    kind, options = ("PNG", {}) if max(image.size) <= TINY else ("JPEG", {"quality": 88})
    image.thumbnail((LARGEST_TILE, LARGEST_TILE))
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()
