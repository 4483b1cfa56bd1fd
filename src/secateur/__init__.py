"""secateur prunes pretrained diffusion and flow models and recovers what pruning cost."""

from .checkpoint import from_pretrained, load, load_pipeline, push_to_hub, save_pipeline, save_pretrained
from .structure import register_structure

__version__ = "0.1.0"

__all__ = [
    "from_pretrained",
    "load",
    "load_pipeline",
    "push_to_hub",
    "register_structure",
    "save_pipeline",
    "save_pretrained",
]
