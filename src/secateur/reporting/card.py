"""The model card of a pruned model: a README.md with its origin, what was done to it, and what was measured."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..base.files import atomic_file, write_text
from ..base.units import number_of
from ..results import Compensation, CutResult, Evaluation, read_result
from ..results.cut import goal_in_words
from .grids import comparison_grid
from .pages import shown_count
from .product import MANIFEST, Product, load_snippet
from .run import Run
from .titles import PARTS, name_of

PICTURE, WIDEST_PICTURE = "samples.png", 1600
NO_LONGER_FITS = (
    "ControlNets and IP-Adapters of the base model no longer fit, nor do LoRAs unless `secateur slice-lora` cuts them "
    "too. Textual inversions load, but were trained through the base model."
)


def model_card(
    manifest: Mapping[str, Any],
    place: str,
    *,
    pipeline: bool = False,
    licence: str | None = None,
    cut: CutResult | None = None,
    compensation: Compensation | None = None,
    evaluation: Evaluation | None = None,
    command: str = "",
    picture: str = "",
) -> str:
    """A model card in the hub's format: YAML front matter, then Markdown.

    Args:
        manifest: content of `pruning.json`: the base model and every step since.
        place: folder or hub id to load the model from.
        pipeline: whether that is a whole pipeline.
        licence: of the base model, by the hub's name for it.
        cut: the result of the cut.
        compensation: the result of the refit.
        evaluation: the measurements.
        command: a command that reproduces the model; by default, those that repeat the manifest's steps.
        picture: path of an image beside the card.
    """
    base = str(manifest["base"].get("id") or "")
    title = place.rstrip("/").rpartition("/")[2]
    if title in PARTS:  # a folder inside a run, whose name does not name a model
        title = f"{name_of(base, 'model')}, pruned"
    parts = [
        _front_matter(base, licence, pipeline),
        f"# {title}",
        _origin(manifest, base),
        f"![Samples of each model from the same noise]({picture})" if picture else "",
        "## Use it",
        f"```python\n{load_snippet(place, pipeline)}\n```",
        NO_LONGER_FITS,
        "## What was done",
        "\n".join(f"{place}. {step}" for place, step in enumerate(map(_step, manifest["steps"]), start=1)),
        " ".join(cut.sentences()) if cut is not None else "",
        " ".join(compensation.sentences()) if compensation is not None else "",
        _measured(evaluation),
        f"## Make it again\n\n```\n{command or commands_of(manifest)}\n```",
        f"## Licence\n\n{_licence(base, licence)}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


@dataclass(frozen=True)
class _Manifest:
    """The fields of `pruning.json` that a card needs."""

    base: dict[str, Any]
    steps: tuple[dict[str, Any], ...]


def write_card(run: Run, product: Product) -> Path | None:
    """Write the model card, README.md with a picture, into the folder of the run's model; None for a dense model.

    Raises:
        SecateurError: the model's manifest is damaged.
    """
    folder = Path(product.path)
    found = [path for path in (folder / MANIFEST, *sorted(folder.glob(f"*/{MANIFEST}"))) if path.is_file()]
    if not found:
        return None
    manifest = read_result(_Manifest, found[0])
    picture = write_picture(run.images, folder)
    card = model_card(
        vars(manifest), f"{run.folder.resolve().name}/{folder.name}", pipeline=product.pipeline,
        licence=product.licence, cut=run.cut, compensation=run.compensation, evaluation=run.evaluation,
        command=run.config.command_line, picture=picture,
    )  # fmt: skip
    return write_text(folder / "README.md", card)


def write_picture(images: Mapping[str, Tensor], folder: Path) -> str:
    """Write the picture of a card, a row for each model, into `folder`; return its file name, "" without images."""
    if not images:
        return ""
    grid = comparison_grid({name: batch[: shown_count(batch)] for name, batch in images.items()})
    grid.thumbnail((WIDEST_PICTURE, WIDEST_PICTURE))
    with atomic_file(folder / PICTURE) as temporary:
        grid.save(temporary, "PNG")
    return PICTURE


def commands_of(manifest: Mapping[str, Any]) -> str:
    """The commands that repeat the steps of a manifest, with DATA in place of the images."""
    base = shlex.quote(str(manifest["base"].get("id") or "DENSE"))
    model, lines = base, []
    for number, step in enumerate(manifest["steps"], start=1):
        out, kind = f"step{number}", step.get("kind")
        if kind == "cut" and step.get("target"):
            ranked = f" --criterion {step['criterion']}" if step.get("criterion") else ""
            lines.append(f"secateur prune {model} --target {step['target']}{ranked} --data DATA --out {out}")
            model = f"{out}/pruned"
        elif kind == "compensation":
            lines.append(f"secateur compensate {model} --reference {base} --data DATA --out {out}")
            model = f"{out}/compensated"
        elif kind == "recovery":
            how = f" --objective {step['objective']}" if step.get("objective") else ""
            teacher = "" if step.get("objective") in (None, "denoising") else f" --teacher {base}"
            steps = f" --steps {step['steps']}" if step.get("steps") else ""
            lines.append(f"secateur finetune {model}{how}{teacher}{steps} --data DATA --out {out}")
            model = f"{out}/model"
    return "\n".join(lines)


def _front_matter(base: str, licence: str | None, pipeline: bool) -> str:
    fields: dict[str, Any] = {"library_name": "diffusers" if pipeline else "secateur"}
    if licence:
        fields["license"] = licence
    if _is_hub_id(base):
        fields["base_model"] = base
    fields["tags"] = ["secateur", "pruned", "diffusers"]
    return (
        "---\n" + "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in fields.items()) + "---"
    )


def _is_hub_id(base: str) -> bool:
    """Whether `base` has the form of a hub id: one slash, and not a path."""
    return base.count("/") == 1 and not base.startswith((".", "/", "~")) and not Path(base).exists()


def _origin(manifest: Mapping[str, Any], base: str) -> str:
    of = f"`{base}`" if base else "a model of the same class"
    return f"A pruned `{manifest['base']['class']}`, cut from {of} by secateur."


def _step(step: Mapping[str, Any]) -> str:
    """One step of the manifest in words."""
    kind = step.get("kind")
    if kind == "cut":
        goal = f" to {goal_in_words(str(step['target']))}" if step.get("target") else ""
        criterion = f", ranked by {step['criterion']}" if step.get("criterion") else ""
        return f"Pruned{goal}{criterion}: {_removed(step)}."
    if kind == "compensation":
        return "Compensated: the layers that read what was cut were refitted in closed form to the dense model."
    if kind == "recovery":
        steps = f" for {number_of(step['steps'], 'step')}" if isinstance(step.get("steps"), int) else ""
        return f"Fine-tuned{steps} by {step.get('objective', 'denoising')}."
    if kind == "labels":
        return f"Given {step.get('classes')} classes of other data."
    return f"{str(kind).capitalize()}."


def _removed(step: Mapping[str, Any]) -> str:
    dims, blocks = step.get("dims", {}), step.get("removed_blocks", ())
    said = []
    if dims:
        units = sum(dim["size"] - len(dim["kept"]) for dim in dims.values())
        said.append(f"{number_of(units, 'unit')} of {number_of(len(dims), 'width')}")
    if blocks:
        said.append(number_of(len(blocks), "block"))
    return f"{' and '.join(said)} removed" if said else "nothing removed"


def _measured(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return ""
    where = f"On {evaluation.device}. " if evaluation.device else ""
    sampled = ""
    if evaluation.fidelity is not None:
        sampled = f"{number_of(evaluation.fidelity.samples, 'sample')} of each model. "
    table = evaluation.tables()["evaluation"].to_markdown()
    return (
        f"## What was measured\n\n{where}{sampled}± is one standard deviation of the measurement.\n\n{table.rstrip()}"
    )


def _licence(base: str, licence: str | None) -> str:
    of = f" `{base}`" if base else ""
    return f"{licence}, that of the base model{of}." if licence else f"That of the base model{of}; see there."
