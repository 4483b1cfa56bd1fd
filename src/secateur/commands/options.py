"""What the commands share on the command line."""

from __future__ import annotations

from typing import Annotated

import tyro

from ..criteria import CRITERIA
from ..evaluation import METRICS

Model = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]

_OF_BLOCKS = [name for name, criterion in CRITERIA.items() if criterion.ranks == "blocks"]
CriterionName = Annotated[
    str,
    tyro.conf.arg(
        metavar="{" + ",".join(CRITERIA) + "}",
        help=f"which criterion ranks the units; {', '.join(_OF_BLOCKS[:-1])} and {_OF_BLOCKS[-1]} rank blocks only.",
    ),
]
MetricName = Annotated[str, tyro.conf.arg(metavar="{" + ",".join(METRICS) + "}")]
