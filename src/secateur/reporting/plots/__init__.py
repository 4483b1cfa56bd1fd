"""Figures of a run, each a pure function of plain numbers."""

from .decisions import plot_decisions
from .evaluation import plot_denoising, plot_speed
from .ranking import plot_cut, plot_ranking
from .stages import plot_stages
from .training import plot_training

__all__ = ["plot_cut", "plot_decisions", "plot_denoising", "plot_ranking", "plot_speed", "plot_stages", "plot_training"]
