"""Figures of a run, each a pure function of plain numbers."""

from .classes import plot_classes
from .compensation import plot_compensation
from .decisions import plot_decisions
from .evaluation import plot_denoising, plot_speed
from .layers import plot_layers
from .ranking import plot_cut, plot_ranking
from .stages import plot_stages
from .training import plot_training

__all__ = [
    "plot_classes",
    "plot_compensation",
    "plot_cut",
    "plot_decisions",
    "plot_denoising",
    "plot_layers",
    "plot_ranking",
    "plot_speed",
    "plot_stages",
    "plot_training",
]
