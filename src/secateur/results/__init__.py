"""Results of every stage, typed: what JSON holds is defined here, once, and the reports read it from here.

A result is a frozen dataclass without models or tensors. It prints as a table, displays itself in a notebook, and is
converted to JSON and back by `to_json` and `from_json`.
"""

from .codec import from_json, read_lines, read_result, to_json, write_lines, write_result
from .compensation import Compensation, Reader
from .cut import CutResult, DimCut, Size
from .decisions import BlockStage, Candidate, Decisions, SoftStage, read_decisions
from .display import Displayed
from .evaluation import MODEL_ORDER, Change, Comparison, DataInfo, Environment, Evaluation
from .means import Mean
from .measured import ClassScores, Estimate, Fidelity, Latency, Layer, Losses, Metric, ModelResult, PerClass
from .quality import QualitySearch, QualityTry
from .ranking import BlockEffect, BlockReport, LossCurve, Ranking
from .recorded import Recorded
from .recovery import Recovery, read_recovery
from .table import Table
from .trials import Round, Score, Search, TrialResult, Trials

__all__ = [
    "MODEL_ORDER",
    "BlockEffect",
    "BlockReport",
    "BlockStage",
    "Candidate",
    "Change",
    "ClassScores",
    "Comparison",
    "Compensation",
    "CutResult",
    "DataInfo",
    "Decisions",
    "DimCut",
    "Displayed",
    "Environment",
    "Estimate",
    "Evaluation",
    "Fidelity",
    "Latency",
    "Layer",
    "LossCurve",
    "Losses",
    "Mean",
    "Metric",
    "ModelResult",
    "PerClass",
    "QualitySearch",
    "QualityTry",
    "Ranking",
    "Reader",
    "Recorded",
    "Recovery",
    "Round",
    "Score",
    "Search",
    "Size",
    "SoftStage",
    "Table",
    "TrialResult",
    "Trials",
    "from_json",
    "read_decisions",
    "read_lines",
    "read_recovery",
    "read_result",
    "to_json",
    "write_lines",
    "write_result",
]
