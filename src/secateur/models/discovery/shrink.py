"""A small copy of a model: the same class and layout, a config reduced by rule, random weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .request import TEXT_TOKENS

HEADS = ("num_attention_heads", "n_heads", "num_heads", "nheads", "dit_heads")
KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "num_key_value_attention_heads")
HEAD_SIZES = ("attention_head_dim", "head_dim")
WIDTHS = (
    "hidden_size",
    "hidden_dim",
    "dim",
    "embed_dim",
    "caption_projection_dim",
    "model_dim",
    "dit_dim",
    "token_dim",
)
AXES = ("axes_dims_rope", "axes_dims", "rope_axes_dim", "axes_dim_rope", "rope_dim_list", "rope_dim", "axes_dim")
SECTIONS = ("mrope_section",)  # frequencies of each axis: a part of the head
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
    "window",
    "experts",
)
SAMPLE = {"sample_height": 4, "sample_width": 6, "sample_frames": 9, "max_text_seq_length": TEXT_TOKENS}
HEAD_SIZE, OTHER_WIDTH, LARGE = 16, 24, 48


def reductions(config: Mapping[str, Any], depth: int | None = None) -> Iterator[dict[str, Any]]:
    """`config` with few and small heads, and every other large width reduced; then with heads of their own size, for
    classes that know the size of a head without being told.

    The ratio of queries to keys and multiples of the residual width are kept. Lists of blocks are as long as before;
    with `depth`, no list is longer than that.
    """
    small = reduced(config, depth)
    yield small
    if (others := reduced(config, depth, keep_heads=True)) != small:
        yield others


def reduced(config: Mapping[str, Any], depth: int | None = None, keep_heads: bool = False) -> dict[str, Any]:
    """One of the `reductions`; with `keep_heads`, heads keep their size."""
    apart = _apart(config)
    found = _narrowed({key: value for key, value in config.items() if not key.startswith(apart)}, keep_heads)
    for prefix in apart:
        group = {key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)}
        found |= {f"{prefix}{key}": value for key, value in _narrowed(group, keep_heads).items()}
    found |= {key: value for key, value in SAMPLE.items() if config.get(key)}
    counts = [key for key, value in config.items() if _counts_blocks(key, value)]
    if depth is not None:
        found |= {key: min(config[key], depth) for key in counts}
    before, after = (sum(each[key] for key in counts) for each in (config, found))
    for key, value in config.items():
        if not _is_axes(value) or key in AXES:
            continue
        if len(value) == before:  # an entry for each block
            found[key] = value[:after]
        elif key.endswith("layers"):  # places of blocks
            found[key] = [place for place in value if place < after]
    return {key: found[key] for key in config}


def _apart(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Prefixes of the entries of other attentions, such as "text_" of one over text alone."""
    return tuple({key.removesuffix(name) for key in config for name in HEADS if key.endswith(f"_{name}")})


def _narrowed(config: Mapping[str, Any], keep_heads: bool) -> dict[str, Any]:
    """`config` of one attention and what belongs to it."""
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
    kept = head_size if keep_heads else HEAD_SIZE
    inner, small = heads * head_size, few * kept
    found: dict[str, Any] = {}
    for key, value in config.items():
        if key in HEADS:
            found[key] = few
        elif key in KEY_HEADS and value:
            found[key] = few // share
        elif key in HEAD_SIZES:
            found[key] = kept
        elif key == "hidden_size" or (type(value) is int and value == width and key in WIDTHS):
            found[key] = small
        elif _counts_blocks(key, value):
            found[key] = value
        elif _is_axes(value) and (sum(value) == head_size or key in SECTIONS):
            found[key] = value if keep_heads else type(value)(_axes(len(value), sum(value) * kept // head_size))
        elif any(part in key for part in KEPT):
            found[key] = value
        elif _is_axes(value) and value and min(value) > LARGE:
            found[key] = type(value)(_width(each, inner, small) for each in value)
        else:
            found[key] = _width(value, inner, small) if type(value) is int and value > LARGE else value
    return found


def _first(config: Mapping[str, Any], keys: Sequence[str]) -> int | None:
    return next((config[key] for key in keys if config.get(key)), None)


def _counts_blocks(key: str, value: Any) -> bool:
    return type(value) is int and key.endswith(DEPTHS)


def _is_axes(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(type(each) is int for each in value)


def _axes(count: int, total: int) -> list[int]:
    """Sizes that add up to `total`, even if they are those of a head; the first not the largest."""
    step = 2 if total == HEAD_SIZE else 1
    each = total // count // step * step
    rest = total - each * count
    sizes = [each] * count
    for i in range(rest // step):
        sizes[-1 - i % count] += step
    return sizes


def _width(value: int, inner: int, small: int) -> int:
    """The residual width, and its multiples up to 8, become those of the small one."""
    if value % inner == 0 and value // inner <= 8:
        return value // inner * small
    if inner % value == 0:
        return small // math.gcd(small, inner // value)
    return OTHER_WIDTH
