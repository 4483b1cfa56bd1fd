"""A finished compression: its models and results in memory, and its folder if it has one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ..base.errors import require
from ..base.files import read_json, write_json
from ..evaluation import write_evaluation
from ..io.checkpoint import save_pretrained
from ..io.pipeline import save_pipeline
from ..reporting import read_run, summarize, write_cut, write_ranking, write_report
from ..reporting.notebook import pictured
from ..results import (
    Compensation,
    CutResult,
    Decisions,
    Evaluation,
    QualitySearch,
    Ranking,
    Recorded,
    Recovery,
    write_lines,
    write_result,
)
from .compression import Compressed
from .folder import CONFIG, plain, refuse_run
from .subject import Subject


@dataclass(frozen=True)
class Run:
    """What `secateur.compress` returns; it prints as its summary, and draws itself in a notebook.

    Attributes:
        folder: where it was written; None for a run in memory.
        settings: its settings and the machine it ran on, as in `config.json`.
    """

    subject: Subject = field(repr=False)
    stages: Compressed = field(repr=False)
    settings: Mapping[str, Any] = field(repr=False)
    folder: Path | None = None

    @property
    def model(self) -> nn.Module:
        """The recovered network, in eval mode."""
        return self.stages.model

    @cached_property
    def pipeline(self) -> DiffusionPipeline | None:
        """The pipeline with the recovered network; None if a network alone was compressed."""
        return self.subject.pipeline_with(self.model)

    @property
    def ranking(self) -> Ranking:
        return self.stages.ranking

    @property
    def cut(self) -> CutResult:
        return self.stages.cut

    @property
    def compensation(self) -> Compensation | None:
        return self.stages.compensation

    @property
    def recovery(self) -> Recovery:
        return self.stages.recovery

    @property
    def decisions(self) -> Decisions | None:
        return self.stages.decisions

    @property
    def quality(self) -> QualitySearch | None:
        """The sizes tried for a quality target."""
        return self.stages.quality

    @property
    def recorded(self) -> Recorded | None:
        """The teacher's book that recovery trained on."""
        return self.stages.recorded

    @property
    def evaluation(self) -> Evaluation | None:
        return self.stages.evaluation

    @property
    def images(self) -> Mapping[str, Tensor]:
        """Up to 64 images of each network from the same noise, (N, C, H, W) in [-1, 1], and of the data as `real`."""
        return self.stages.images

    def save(self, folder: str | Path) -> Path:
        """Write models, results and a report as the command would have; return the folder.

        Raises:
            SecateurError: `folder` holds another run, or a model.
        """
        folder, settings = Path(folder), plain(self.settings)
        if not (folder / CONFIG).is_file() or read_json(folder / CONFIG) != settings:
            refuse_run(folder)
            free = not (folder / CONFIG).exists()
            require(free, f"{folder} holds the {CONFIG} of a model, which would be overwritten; choose another folder")
        write_json(folder / CONFIG, settings)
        write_result(folder / "ranking.json", self.ranking)
        write_ranking(folder)
        write_result(folder / "cut.json", self.cut)
        write_cut(folder)
        if self.quality is not None:
            write_result(folder / "quality.json", self.quality)
        if self.recorded is not None:
            write_result(folder / "recorded.json", self.recorded)
        if self.compensation is not None:
            write_result(folder / "compensation.json", self.compensation)
        stages = () if self.decisions is None else (*self.decisions.soft, *self.decisions.blocks)
        for name, lines in (("log.jsonl", self.recovery.records), ("stages.jsonl", stages)):
            if lines:
                write_lines(folder / "recovery" / name, lines)
        save_pretrained(self.model, folder / "model", self.subject.loaded.scheduler_config)
        if self.subject.in_pipeline:
            save_pipeline(self.subject.loaded, self.model, folder / "pipeline")
        if self.evaluation is not None:
            write_evaluation(self.evaluation, folder / "evaluation", self.images)
        write_report(folder)
        return folder

    def report(self, folder: str | Path | None = None) -> Path:
        """Write the page about the run and return its path; a run in memory is saved to `folder` first.

        Raises:
            ValueError: the run is in memory, and no folder was given.
        """
        if self.folder is not None:
            return self.folder / "report.html"
        if folder is None:
            raise ValueError("this run is in memory only: give report() a folder to write to")
        return self.save(folder) / "report.html"

    def __str__(self) -> str:
        return "\n".join(self.sentences)

    def _repr_html_(self) -> str:
        shown = [part._repr_html_() for part in (self.cut, self.evaluation) if part is not None]
        said = (f"<p>{escape(sentence)}</p>" for sentence in self.sentences)
        return "".join([*said, pictured(self.images), *shown])

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        """What was asked, reached and lost, and which default metrics were not measured."""
        if self.folder is not None:
            summary = summarize(read_run(self.folder))
            return (*summary.sentences, *map(noted, summary.notes))
        quality = () if self.quality is None else self.quality.sentences()
        if self.evaluation is None:
            return (*quality, *self.cut.sentences())
        return (*quality, *self.cut.sentences(), *self.evaluation.sentences(), *map(noted, self.evaluation.all_notes()))


def noted(note: str) -> str:
    """A note as a sentence."""
    return f"Note: {note}."
