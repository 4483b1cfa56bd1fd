"""Building blocks of all pages: the templates, figures as SVG, and embedded images."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..results import Evaluation
from .grids import to_image
from .run import Run
from .style import inline_svg

PIXELATED = 64  # pixels; images up to this size are enlarged pixel by pixel, larger ones smoothly
LOSSLESS = 256  # pixels; larger images are JPEG of high quality
LARGEST = 1024  # pixels: the largest image in the page
MOST_SAMPLES, MOST_LARGE_SAMPLES = 10, 5  # in a row; fewer of large images
MOST_CLASSES = 20
OF_A_CLASS = 5
HIGH = 0.995  # quantile of the differences that is shown white


@dataclass(frozen=True)
class Strip:
    """A row of images, as data URIs, with its label and a caption for each."""

    label: str
    tiles: tuple[str, ...]
    captions: tuple[str, ...] = ()
    pixelated: bool = False
    key: str = ""  # names the tiles in links

    @property
    def large(self) -> bool:
        """Whether the images are worth enlarging."""
        return not self.pixelated


def render(template: str, **values: Any) -> str:
    """Fill in `template`; text in `values` is escaped."""
    environment = Environment(
        loader=PackageLoader("secateur.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(template).render(**values)


def as_svgs(figures: Mapping[str, Figure], alternatives: Mapping[str, str]) -> dict[str, Markup]:
    """Figures as SVG elements, each with its text alternative."""
    return {name: Markup(inline_svg(figure, str(escape(alternatives[name])), name)) for name, figure in figures.items()}


def link_to(path: str) -> str:
    """A link to a file below the page. It starts with ./ and is quoted, so that no name can be taken for a scheme."""
    return "./" + quote(path)


def shown_count(images: Tensor) -> int:
    """How many images to show in a row: fewer if they are large."""
    return MOST_SAMPLES if max(images.shape[2:]) <= PIXELATED else MOST_LARGE_SAMPLES


def strip_of(label: str, images: Tensor, captions: Sequence[str] = (), most: int | None = None, key: str = "") -> Strip:
    """The first images as a row, at their own size; at most `most` of them, or as many as `shown_count` says."""
    count = shown_count(images) if most is None else most
    pixelated = max(images.shape[2:]) <= PIXELATED
    tiles = tuple(_data_uri(image) for image in images[:count])
    return Strip(label, tiles, tuple(captions[:count]), pixelated, key)


def difference_strip(label: str, one: Tensor, other: Tensor, key: str = "difference") -> Strip:
    """|one - other|, scaled so that nearly the largest of the differences shown is white."""
    count = min(shown_count(one), len(one), len(other))
    differences = (one[:count].float() - other[:count].float()).nan_to_num().abs().mean(1, keepdim=True)
    values = differences.flatten().sort().values
    high = float(values[int(HIGH * (len(values) - 1))])
    factor = 1.0 if high == 0 else max(1.0, 2.0 / high)
    return strip_of(f"{label}, ×{factor:.2g}", differences * factor - 1, most=count, key=key)


def strips_by_class(
    images: Mapping[str, Tensor], class_labels: Tensor | None, names: Mapping[int, str]
) -> dict[str, list[Strip]]:
    """For each class, a row of images for each model; empty if no class was drawn more than once."""
    if class_labels is None or not images:
        return {}
    count = min(len(class_labels), *(len(batch) for batch in images.values()))
    labels = class_labels[:count]
    classes = sorted(set(labels.tolist()))
    if len(classes) == count:
        return {}
    return {
        names.get(label, f"class {label}"): [
            strip_of(name, batch[:count][labels == label], most=OF_A_CLASS) for name, batch in images.items()
        ]
        for label in classes[:MOST_CLASSES]
    }


def captions_of(run: Run) -> tuple[Sequence[str], str]:
    """The captions of the samples, and of which kind they are: prompts, classes, or none."""
    if run.evaluation is not None and run.evaluation.captions:
        return run.evaluation.captions, "prompt"
    if run.class_labels is None:
        return (), ""
    names = class_names(run.evaluation)
    return [names.get(label, str(label)) for label in run.class_labels.tolist()], "class"


def class_names(evaluation: Evaluation | None) -> dict[int, str]:
    """The names of the data's classes, if the evaluation has them."""
    return {} if evaluation is None or evaluation.data is None else dict(enumerate(evaluation.data.class_names))


def _data_uri(image_CHW: Tensor) -> str:
    image = to_image(image_CHW)
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    lossless = max(image.size) <= LOSSLESS
    kind, options = ("PNG", {"optimize": True}) if lossless else ("JPEG", {"quality": 92, "subsampling": 0})
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()
