"""What the commands share on the command line."""

from __future__ import annotations

from typing import Annotated

import tyro

Model = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
