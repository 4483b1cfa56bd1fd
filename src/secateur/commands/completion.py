"""`secateur completion`: a script that lets the shell complete commands and options."""

from __future__ import annotations

import importlib
from typing import Annotated, Literal

import tyro

from ..base.console import say
from . import COMMANDS
from .defaults import defaults_of
from .grammar import Grammar

SCRIPT = """# secateur: completion for bash, and for zsh after `autoload -U bashcompinit && bashcompinit`
_secateur() {{
  local words word=${{COMP_WORDS[COMP_CWORD]}}
  case ${{COMP_WORDS[1]}} in
{cases}
    *) words="{commands}" ;;
  esac
  [ "$COMP_CWORD" = 1 ] && words="{commands}"
  case $word in
    -*) COMPREPLY=( $(compgen -W "$words" -- "$word") ) ;;
    *) if [ "$COMP_CWORD" = 1 ]; then COMPREPLY=( $(compgen -W "$words" -- "$word") )
       else local IFS=$'\\n'; COMPREPLY=( $(compgen -f -- "$word") ); compopt -o filenames 2> /dev/null; fi ;;
  esac
}}
complete -F _secateur secateur"""


def completion(
    shell: Annotated[tyro.conf.Positional[Literal["bash", "zsh"]], tyro.conf.arg(metavar="bash|zsh")] = "bash",
) -> None:
    """Print a script that completes commands and options: secateur completion bash > ~/.secateur-completion.

    Then put `source ~/.secateur-completion` into ~/.bashrc, or into ~/.zshrc after
    `autoload -U bashcompinit && bashcompinit`.

    Args:
        shell: the script is the same for both.
    """
    cases = []
    for name in COMMANDS:
        module = importlib.import_module(f".{name.replace('-', '_')}", __package__)
        grammar = Grammar(getattr(module, name.replace("-", "_")), defaults_of(name, []))
        cases.append(f'    {name}) words="{" ".join(grammar.names())}" ;;')
    say(SCRIPT.format(cases="\n".join(cases), commands=" ".join(COMMANDS)))
