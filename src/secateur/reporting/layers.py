"""Cost by layer of two models, one cut from the other, matched by the dense model's names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from ..results import Layer

Pair = tuple[Layer, Layer]  # before and after; a removed layer has size 0 after
Kept = Mapping[str, Sequence[str] | None]  # by list of blocks, the indices that stayed; None if unknown
WHOLE = "(model itself)"  # stands for what belongs to no layer inside it
MOST_PARTS = 32


def layer_pairs(dense: Sequence[Layer], final: Sequence[Layer], removed_blocks: Collection[str]) -> list[Pair]:
    """Every layer of `dense` beside what is left of it in `final`.

    Blocks of a list are renumbered when some are removed. If `removed_blocks` does not say which, its layers cannot be
    matched, and the whole list is one entry.
    """
    kept = _kept(dense, final, removed_blocks)
    before = _summed(dense, lambda name: _matched(name, kept, renumber=False))
    after = _summed(final, lambda name: _matched(name, kept, renumber=True))
    return [(layer, after.get(name, _nothing(layer))) for name, layer in before.items()] + [
        (_nothing(layer), layer) for name, layer in after.items() if name not in before
    ]


def parts(pairs: Sequence[Pair], most: int = MOST_PARTS) -> list[Pair]:
    """The same in at most `most` parts: layers whose names share a prefix are merged, as few as necessary."""
    names = [layer.name.split(".") for layer, _ in pairs]
    depths = range(max(map(len, names)), 0, -1)
    depth = next((depth for depth in depths if len({tuple(name[:depth]) for name in names}) <= most), 1)

    def outer(name: str) -> str:
        return ".".join(name.split(".")[:depth])

    before, after = (_summed((pair[side] for pair in pairs), outer) for side in (0, 1))
    return [(before[name], after[name]) for name in before]


def _kept(dense: Sequence[Layer], final: Sequence[Layer], removed_blocks: Collection[str]) -> Kept:
    numbers, left = _numbers(dense), _numbers(final)
    kept: dict[str, Sequence[str] | None] = {}
    for parent, before in numbers.items():
        after = left.get(parent, [])
        stayed = [number for number in before if f"{parent}.{number}" not in removed_blocks]
        if 0 < len(after) < len(before) and after != stayed:  # else not renumbered, or gone
            kept[parent] = stayed if len(stayed) == len(after) else None
    return kept


def _numbers(layers: Iterable[Layer]) -> dict[str, list[str]]:
    """The indices that occur in each list of modules, by the list's name."""
    found: dict[str, dict[str, None]] = {}
    for layer in layers:
        names = layer.name.split(".")
        for place, name in enumerate(names):
            if name.isdigit():
                found.setdefault(".".join(names[:place]), {})[name] = None
    return {parent: list(numbers) for parent, numbers in found.items()}


def _matched(name: str, kept: Kept, renumber: bool) -> str:
    names = name.split(".")
    for place, part in enumerate(names):
        parent = ".".join(names[:place])
        if part.isdigit() and parent in kept:
            stayed = kept[parent]
            if stayed is None:
                return parent
            if renumber:
                names[place] = stayed[int(part)]
    return ".".join(names)


def _summed(layers: Iterable[Layer], name_of: Callable[[str], str]) -> dict[str, Layer]:
    found: dict[str, Layer] = {}
    for layer in layers:
        name = name_of(layer.name) or WHOLE
        one = found.get(name)
        found[name] = (
            Layer(name, layer.kind, layer.weight, layer.parameters, layer.macs)
            if one is None
            else Layer(name, "", (), one.parameters + layer.parameters, one.macs + layer.macs)
        )
    return found


def _nothing(layer: Layer) -> Layer:
    return Layer(layer.name, layer.kind, (), 0, 0)
