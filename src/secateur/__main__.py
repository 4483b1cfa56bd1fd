"""`python -m secateur`, which a launcher of several processes needs."""

import os
import sys

# Python puts the current folder first where modules are looked for by name. It may be a model's, from a stranger.
sys.path[:] = [place for place in sys.path if place and os.path.abspath(place) != os.getcwd()]

from .cli import main  # noqa: E402

main()
