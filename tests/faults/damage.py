"""Random damage to files, by a seed and by their structure: drop, retype, truncate, enlarge, swap."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ODD = (None, True, -1, 0, 2**70, 1e308, -0.5, "", "x", "\udce9", [], [[]], {}, {"a": [1]}, [None, 1, "x"], "a" * 5000)


def damaged(path: Path, draw: random.Random) -> str:
    """Damage a file; returns how."""
    content = path.read_bytes()
    ways = [_truncate, _flip, _empty, _insert, *BY_SUFFIX.get(path.suffix, [])]
    weights = [1, 1, 0.2, 1, *[4] * (len(ways) - 4)]
    (way,) = draw.choices(ways, weights)
    path.write_bytes(way(content, draw))
    return f"{path.name}: {way.__name__.strip('_')}"


def _truncate(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def _flip(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 4, 64))):
        if changed:
            changed[draw.randrange(min(len(changed), draw.choice((64, 1024, len(changed)))))] = draw.randrange(256)
    return bytes(changed)


def _empty(content: bytes, draw: random.Random) -> bytes:
    return draw.choice((b"", b"\0" * len(content), b"\xff\xfe"))


def _insert(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content) + 1)
    return content[:at] + draw.choice((b"\xff", b"\0", b"[" * 2000, b"\n", content[:50])) + content[at:]


def _json(content: bytes, draw: random.Random) -> bytes:
    return json.dumps(_changed(json.loads(content), draw)).encode()


def _lines(content: bytes, draw: random.Random) -> bytes:
    lines = content.splitlines()
    at = draw.randrange(len(lines))
    lines[at] = draw.choice((_json, _truncate, _flip))(lines[at], draw)
    return b"\n".join(lines)


def _changed(value: Any, draw: random.Random) -> Any:
    """The value with one random element changed."""
    if not isinstance(value, dict | list) or not value or draw.random() < 0.1:
        return draw.choice((*ODD, [value], {"x": value}, str(value)))
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = draw.choice(keys)
    way = draw.choice(("within", "within", "drop", "retype", "enlarge", "swap"))
    if way == "within":
        value[key] = _changed(value[key], draw)
    elif way == "drop":
        del value[key]
    elif way == "retype":
        value[key] = draw.choice(ODD)
    elif way == "enlarge":
        value[key] = _larger(value[key])
    else:
        other = draw.choice(keys)
        value[key], value[other] = value[other], value[key]
    return value


def _larger(value: Any) -> Any:
    if isinstance(value, list | str):
        return value * 1000
    return value * 10_000 if isinstance(value, int | float) else value


def _safetensors(content: bytes, draw: random.Random) -> bytes:
    (length,) = struct.unpack_from("<Q", content)
    header = json.dumps(_changed(json.loads(content[8 : 8 + length]), draw)).encode()
    said = draw.choice((len(header), len(header), len(header), 2**63, 0))
    return struct.pack("<Q", said) + header + content[8 + length :]


def _npz(content: bytes, draw: random.Random) -> bytes:
    """One member dropped, damaged, or exchanged for another."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice(list(members))
    way = draw.choice(("drop", "damage", "swap", "header"))
    if way == "drop":
        del members[name]
    elif way == "swap":
        members[name] = members[draw.choice(list(members))]
    elif way == "damage":
        members[name] = draw.choice((_truncate, _flip, _empty))(members[name], draw)
    else:
        old, new = draw.choice(
            ((b"'|u1'", b"'|O' "), (b"(", b"(9"), (b"'<f8'", b"'<c8'"), (b"False", b"True "), (b"'", b'"'))
        )
        members[name] = members[name].replace(old, new, 1)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return packed.getvalue()


def _png(content: bytes, draw: random.Random) -> bytes:
    """Another size, depth or kind in the header, with its checksum right."""
    import zlib

    changed = bytearray(content)
    at = draw.choice((16, 20, 24, 25))
    if at < 24:
        struct.pack_into(">I", changed, at, draw.choice((0, 1, 7, 9999, 2**20, 2**31 - 1, 2**32 - 1)))
    else:
        changed[at] = draw.randrange(20)
    changed[29:33] = struct.pack(">I", zlib.crc32(bytes(changed[12:29])))
    return bytes(changed)


BY_SUFFIX: dict[str, list[Callable[[bytes, random.Random], bytes]]] = {
    ".json": [_json],
    ".jsonl": [_lines],
    ".safetensors": [_safetensors],
    ".npz": [_npz],
    ".png": [_png],
}
