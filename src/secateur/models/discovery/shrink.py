"""A small copy of a model: the same class and layout, a config reduced by rule, random weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

HEADS = ("num_attention_heads", "n_heads", "num_heads", "nheads", "dit_heads")
KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "num_key_value_attention_heads")
HEAD_SIZES = ("attention_head_dim", "head_dim")
WIDTHS = ("hidden_size", "dim", "embed_dim", "caption_projection_dim", "model_dim", "dit_dim", "token_dim")
AXES = ("axes_dims_rope", "axes_dims", "rope_axes_dim", "axes_dim_rope", "rope_dim_list", "rope_dim", "axes_dim")
DEPTHS = ("layers", "depth", "_blocks")
KEPT = (
    "theta",
    "max",
    "len",
    "base",
    "freq",
    "factor",
    "scale",
    "vocab",
    "target",
    "sample",
    "rate",
    "patch",
    "image_s",
)
HEAD_SIZE, OTHER_WIDTH, LARGE = 16, 24, 48


def reduced(config: Mapping[str, Any], depth: int | None = None) -> dict[str, Any]:
    """`config` with few and small heads, and every other large width reduced; lists of blocks as long as before.

    The ratio of queries to keys and multiples of the residual width are kept. With `depth`, no list is longer than
    that.
    """
    heads = _first(config, HEADS)
    keys = _first(config, KEY_HEADS) or heads
    width = _first(config, WIDTHS)
    axes = next((sum(config[key]) for key in AXES if _is_axes(config.get(key)) and config[key]), None)
    head_size = _first(config, HEAD_SIZES) or (width // heads if width and heads else axes)
    if heads is None and width is not None and head_size is not None:
        heads = keys = width // head_size
    if heads is None or keys is None or head_size is None:
        return dict(config)
    share = max(heads // keys, 1)
    few = 2 * share if share > 1 else 4
    inner, small = heads * head_size, few * HEAD_SIZE
    found: dict[str, Any] = {}
    for key, value in config.items():
        if key in HEADS:
            found[key] = few
        elif key in KEY_HEADS and value:
            found[key] = few // share
        elif key in HEAD_SIZES:
            found[key] = HEAD_SIZE
        elif key == "hidden_size" or (type(value) is int and value == width and key in WIDTHS):
            found[key] = small
        elif _counts_blocks(key, value):
            found[key] = value if depth is None else min(value, depth)
        elif _is_axes(value) and sum(value) == head_size:
            found[key] = type(value)(_axes(len(value)))
        elif type(value) is int and value > LARGE and not any(part in key for part in KEPT):
            found[key] = _width(value, inner, small)
        else:
            found[key] = value
    return found


def _first(config: Mapping[str, Any], keys: Sequence[str]) -> int | None:
    return next((config[key] for key in keys if config.get(key)), None)


def _counts_blocks(key: str, value: Any) -> bool:
    return type(value) is int and key.endswith(DEPTHS)


def _is_axes(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(type(each) is int for each in value)


def _axes(count: int) -> list[int]:
    """Even sizes that add up to `HEAD_SIZE`, the first not the largest."""
    each = HEAD_SIZE // count // 2 * 2
    rest = HEAD_SIZE - each * count
    sizes = [each] * count
    for i in range(rest // 2):
        sizes[-1 - i % count] += 2
    return sizes


def _width(value: int, inner: int, small: int) -> int:
    """The residual width, and its multiples up to 8, become those of the small one."""
    if value % inner == 0 and value // inner <= 8:
        return value // inner * small
    if inner % value == 0:
        return small // math.gcd(small, inner // value)
    return OTHER_WIDTH
