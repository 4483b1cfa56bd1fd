"""A whole model from one that a user sharded (FSDP2)."""

from __future__ import annotations

from typing import Any

from diffusers import ModelMixin
from torch import Tensor, nn

from ..base.shards import is_sharded, require_whole, whole
from ..models.registry import is_known
from .manifest import Manifest, dense_skeleton, manifest_of, pruned_skeleton
from .pruned import dense_class, saved_module


def whole_model(model: nn.Module, work: str, keep: bool = True) -> nn.Module:
    """A model in eval mode with the gathered weights of `model`, on the CPU, in the processes that `keep` them, without
    values in the others; every process must call this. A model that is whole already is returned as it is.

    `model` does not change, and its shards stay in memory.

    Raises:
        SecateurError: its class cannot be built again, since it is not one of diffusers; `work` says what for.
    """
    if not is_sharded(model):
        return model
    built: Any = model
    dense = dense_class(model)
    if saved_module(model) is not model or not isinstance(model, ModelMixin) or not is_known(dense.__name__):
        require_whole(model, work)
    manifest = manifest_of(model)
    base = Manifest({"class": dense.__name__, "config": dict(built.config)})
    found = dense_skeleton(base) if manifest is None else pruned_skeleton(manifest)
    values: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():  # one at a time is whole on the device
        gathered = whole(value.detach())
        if keep:
            values[name] = gathered.cpu()
    if keep:
        found.load_state_dict(values, assign=True)
    return found.eval()
