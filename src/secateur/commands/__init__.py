"""One file per command; each is a Python function that the command line calls with the same arguments."""

from ..runs.trials import TrialConfig
from .best import best
from .check_structure import check_structure
from .compress import compress
from .convert import convert
from .encode import encode
from .evaluate import evaluate
from .export import export
from .finetune import finetune
from .inspect import inspect
from .prune import prune
from .quickstart import quickstart
from .rank import rank
from .report import report
from .sample import sample
from .slice_lora import slice_lora
from .sweep import sweep

__all__ = [
    "TrialConfig",
    "best",
    "check_structure",
    "compress",
    "convert",
    "encode",
    "evaluate",
    "export",
    "finetune",
    "inspect",
    "prune",
    "quickstart",
    "rank",
    "report",
    "sample",
    "slice_lora",
    "sweep",
]
