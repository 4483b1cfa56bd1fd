"""Compensation: refit the layers that stay to the dense model, in closed form, before any training."""

from .compensate import compensate
from .config import CompensationConfig, CompensationTarget

__all__ = ["CompensationConfig", "CompensationTarget", "compensate"]
