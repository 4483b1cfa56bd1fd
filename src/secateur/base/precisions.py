"""The precisions in which copies of a model can be measured."""

from typing import Literal

PrecisionName = Literal["bfloat16", "float16", "int8", "float8"]
