"""Data as batches: an image folder, an `.npz`, `digits`, or the latents of any of these."""

from .arrays import ArrayDataset
from .dataset import Batch, ImageDataset, calibration_batch, calibration_order
from .folders import FolderDataset
from .latents import LatentDataset, pixels
from .load import load_data

__all__ = [
    "ArrayDataset",
    "Batch",
    "FolderDataset",
    "ImageDataset",
    "LatentDataset",
    "calibration_batch",
    "calibration_order",
    "load_data",
    "pixels",
]
