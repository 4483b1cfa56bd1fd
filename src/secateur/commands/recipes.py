"""`secateur recipes`: list the named recipes, or write one as a file to start from."""

from __future__ import annotations

import shutil
import textwrap
from typing import Annotated, Literal

import tyro

from ..base.console import say
from ..base.errors import SecateurError
from ..recipes import RECIPES, recipe_named, resolve
from .grammar import option_names
from .options_file import as_yaml

START = """# The options that --recipe {name} stands for. Change what you like, then run
#   secateur compress MODEL --config FILE --target macs=50% --data IMAGES --out RUN
# or write model, target, data and out here as well."""
SPELLED = {"name": "recipe", "compensates": "compensation", "records": "book"}  # options of other names
FIRST = ("recipe", "criterion", "schedule", "compensation", "book", "objective", "steps")


def recipes(
    action: Annotated[tyro.conf.Positional[Literal["list", "show"]], tyro.conf.arg(metavar="list|show")] = "list",
    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")] = "",
) -> None:
    """List the named recipes, or show every option of one as a file that `--config` takes.

    Args:
        action: list them, or show one.
        name: the recipe to show: secateur recipes show default > run.yaml.
    """
    if action == "list":
        width = max(map(len, RECIPES))
        for each, make in RECIPES.items():
            say(_about(f"{each:{width}}", make.__doc__ or ""))
        say("\nsecateur recipes show NAME > run.yaml writes one as a file; compress --config run.yaml starts from it.")
        return
    if not name:
        raise SecateurError("show which recipe? secateur recipes lists them")
    options = option_names(resolve(recipe_named(name)))
    options |= {option: options.pop(field) for field, option in SPELLED.items()}
    first = {each: options.pop(each) for each in FIRST}
    say(f"{START.format(name=name)}\n{as_yaml(first | options).rstrip()}")


def _about(name: str, doc: str) -> str:
    """A line of the list, wrapped: the first paragraph of `doc`."""
    said = " ".join(doc.strip().partition("\n\n")[0].split()).rstrip(".")
    return textwrap.fill(
        f"{name}  {said}", shutil.get_terminal_size().columns - 1, subsequent_indent=" " * (len(name) + 2)
    )
