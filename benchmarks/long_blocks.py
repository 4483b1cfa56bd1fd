"""Block pruning over a longer recovery, where adaptive stages leave more steps for the small model.

    python benchmarks/long_blocks.py --model digits-sit
    python benchmarks/long_blocks.py --table

Half of the blocks are removed, as in blocks.py, but within 1000 optimizer steps. A stopped run continues after the last
result.
"""

from __future__ import annotations

from bench import RESULTS, command_line, compare, read_json, write_text
from blocks import METHODS, table, train

PREFIX = "long-blocks"
SHOWN = [
    "one shot, uniform",
    "one shot, cosine",
    "one shot, ced",
    "one shot, deviation",
    "adaptive, ced",
    "adaptive, deviation",
]


def main() -> None:
    parser = command_line(__doc__, steps=1000)
    parser.set_defaults(targets=["blocks=6"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=SHOWN)
    arguments = parser.parse_args()
    if not arguments.table:
        compare(PREFIX, arguments, train)
    for path in sorted(RESULTS.glob(f"{PREFIX}-*.json")):
        text = table(read_json(path), METHODS)
        write_text(path.with_suffix(".md"), text)
        print(f"\n{path.stem}\n\n{text}")


if __name__ == "__main__":
    main()
