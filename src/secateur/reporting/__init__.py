"""Reports of runs: plots, image grids, tables and one self-contained page."""

from . import notebook as _notebook  # noqa: F401  results draw themselves from here on
from .card import model_card
from .comparison import TRIALS, write_comparison
from .files import write_cut, write_ranking
from .grids import comparison_grid, image_grid
from .html import write_report
from .plots import plot_cut, plot_denoising, plot_ranking, plot_speed, plot_stages, plot_training
from .run import read_run, read_samples
from .style import save_figure
from .summary import summarize

__all__ = [
    "TRIALS",
    "comparison_grid",
    "image_grid",
    "model_card",
    "plot_cut",
    "plot_denoising",
    "plot_ranking",
    "plot_speed",
    "plot_stages",
    "plot_training",
    "read_run",
    "read_samples",
    "save_figure",
    "summarize",
    "write_comparison",
    "write_cut",
    "write_ranking",
    "write_report",
]
