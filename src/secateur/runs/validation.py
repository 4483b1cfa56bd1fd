"""Images drawn while a model trains, from the same noise every time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from ..base.errors import SecateurError, require
from ..base.files import atomic_folder
from ..data import ImageDataset
from ..data.clips import side_by_side
from ..data.conditions import label_conditions, null_conditions, sample_conditions
from ..data.text import open_text_encoder
from ..models.conditions import Conditions
from ..models.network import class_count, input_shape, takes_text
from ..process.grid import usual_steps
from ..process.reconstruction import Reconstruction
from ..process.sampling import generate_batch
from ..recovery import RecoveryConfig
from ..reporting.grids import to_image
from .data import decoder
from .sampling import default_guidance, image_shape
from .subject import Subject

IMAGES, SAMPLER_STEPS = 4, 25
FOLDER = "validation"  # inside the folder of the recovery: step-00000100/0.png and so on


def check_validation(subject: Subject, recovery: RecoveryConfig) -> None:
    """Check, before long work starts, that the validation images can be drawn.

    Raises:
        SecateurError: the model does not take these prompts or classes, or draws no images.
    """
    prompts, classes = recovery.validation_prompts, recovery.validation_classes
    if not recovery.validation_every:
        require(not prompts and not classes, "validation prompts and classes are given, and validation_every is 0")
        return
    draws = hasattr(subject.process, "scheduler") and not isinstance(subject.process, Reconstruction)
    require(draws, f"{subject.name} draws no images: leave validation_every at 0")
    require(not prompts or takes_text(subject.model), f"{subject.name} takes no text: it has no use for a prompt")
    known = class_count(subject.model)
    if classes and (known is None or max(classes) >= known or min(classes) < 0):
        raise SecateurError(f"validation classes are {classes}; the model has {'none' if known is None else known}")


def validation_of(
    subject: Subject, dataset: ImageDataset, recovery: RecoveryConfig, folder: Path
) -> Callable[[nn.Module, int], Tensor] | None:
    """A function of the model in training and the step that draws images (N, C, H, W) in [-1, 1], also into `folder`.

    None if no validation images are asked for.
    """
    if not recovery.validation_every:
        return None
    conditions, null, count = _conditions(subject, dataset, recovery)
    guidance, decode = default_guidance(subject) if null else 1.0, decoder(subject)

    def draw(model: nn.Module, step: int) -> Tensor:
        images = generate_batch(
            model,
            subject.process,
            range(count),
            input_shape(model),
            conditions,
            seed=recovery.seed,
            num_inference_steps=usual_steps(subject.process, SAMPLER_STEPS),
            guidance_scale=guidance,
            null=null,
            decode=decode,
        ).cpu()
        images = side_by_side(images)  # the frames of clips
        with atomic_folder(folder / FOLDER / f"step-{step:08d}") as place:
            for number, image in enumerate(images):
                to_image(image).save(place / f"{number}.png")
        return images

    return draw


def _conditions(
    subject: Subject, dataset: ImageDataset, recovery: RecoveryConfig
) -> tuple[Conditions, Conditions, int]:
    """The conditions of every image, the null conditions, and the number of images."""
    if recovery.validation_prompts:
        pipeline = subject.loaded.pipeline
        assert pipeline is not None  # a model that takes text is opened with it
        *_, height, width = image_shape(subject)
        encoder = open_text_encoder(pipeline, (height, width), subject.device)
        return encoder(recovery.validation_prompts), encoder.null(), len(recovery.validation_prompts)
    null = null_conditions(subject.model, dataset)
    if recovery.validation_classes:
        return label_conditions(list(recovery.validation_classes)), null, len(recovery.validation_classes)
    return sample_conditions(subject.model, dataset, range(IMAGES), recovery.seed), null, IMAGES
