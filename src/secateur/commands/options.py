"""What the commands share on the command line."""

from __future__ import annotations

from typing import Annotated

import tyro

from ..criteria import CRITERIA

Model = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
CriterionName = Annotated[str, tyro.conf.arg(metavar="{" + ",".join(CRITERIA) + "}")]
