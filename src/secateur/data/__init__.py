"""Data sets that return batches: image folders, tables, `.npz` files, objects in memory, or latents of any of these."""

from .arrays import ArrayDataset
from .dataset import Batch, ImageDataset, PixelDataset, calibration_batch, calibration_order
from .folders import FolderDataset
from .latents import EncodedDataset, LatentDataset, pixels
from .load import load_data
from .nothing import NoData
from .tables import TableDataset

__all__ = [
    "ArrayDataset",
    "Batch",
    "EncodedDataset",
    "FolderDataset",
    "ImageDataset",
    "LatentDataset",
    "NoData",
    "PixelDataset",
    "TableDataset",
    "calibration_batch",
    "calibration_order",
    "load_data",
    "pixels",
]
