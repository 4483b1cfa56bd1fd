"""Compensation: refit the layers that stay to the dense model, in closed form, before any training."""

from .compensate import compensate
from .config import CompensationConfig, CompensationTarget
from .price import LayerPrice, Price, measure_speed, price

__all__ = [
    "CompensationConfig",
    "CompensationTarget",
    "LayerPrice",
    "Price",
    "compensate",
    "measure_speed",
    "price",
]
