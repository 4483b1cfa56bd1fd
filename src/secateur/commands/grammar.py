"""From a command's function to its options: one spelling each, and `--help` shows the most used first."""

from __future__ import annotations

import functools
import inspect
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Annotated, Any, get_args, get_type_hints

import docstring_parser
import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, StructConstructorSpec, StructFieldSpec

from ..base.errors import require
from ..evaluation import METRICS, EvaluationConfig
from ..recovery import RecoveryConfig

# Options of a group that are used so often that they are spelled without its name, such as --steps.
VALIDATION = ("validation_every", "validation_prompts", "validation_classes")
PLAIN = {RecoveryConfig: ("steps", "objective", *VALIDATION), EvaluationConfig: ("metrics",)}
# Options of every command that few need.
RARE = frozenset({"revision", "subfolder", "variant", "token", "cache_dir", "torch_dtype", "new_labels", "keep"})
OPTIONS = f"{__package__}.options"
HELP, WHOLE_HELP = ("-h", "--help"), "--help-all"
FEWEST_COLUMNS = 40
MORE = {
    "--config FILE": "options from a YAML file, as `secateur recipes show` writes it; the command line overrides it",
    WHOLE_HELP: "every option",
}
METRICS_SHOWN = tyro.conf.arg(metavar="{" + ",".join(METRICS) + "}", help_behavior_hint="")


@dataclass(frozen=True)
class Grammar:
    """The options of `command`, a function, whose groups of options have the defaults `defaults`.

    Without a `model`, the command line must name one.
    """

    command: Callable[..., Any]
    defaults: Mapping[str, Any]
    model: str | None = None

    def parse(self, name: str, options: Sequence[str]) -> Callable[[], Any]:
        """The command with `options`, ready to be called; or print its help and exit.

        Raises:
            SecateurError: there is a `model`, and the command takes none; or a value is out of range.
        """
        takes_model = any(getattr(kind, "__module__", "") == OPTIONS for kind in get_type_hints(self.command).values())
        require(self.model is None or takes_model, f"the file of options names a model, and secateur {name} takes none")
        whole = WHOLE_HELP in options
        help_wanted = whole or any(option in HELP for option in options)
        arguments = ["--help"] if help_wanted else list(options)
        try:
            call: Callable[[], Any] = tyro.cli(
                self.command,
                prog=f"secateur {name}",
                args=arguments,
                config=(tyro.conf.AvoidSubcommands,),
                registry=self.registry(short=help_wanted and not whole),
            )
        except SystemExit:
            if help_wanted and not whole:
                print("\n".join(_line(option, about) for option, about in {**self._groups(), **MORE}.items()))
            raise
        return call

    def registry(self, short: bool = False) -> ConstructorRegistry:
        """How tyro builds the options; a `short` help leaves out groups and rare options."""
        registry = ConstructorRegistry()

        @registry.struct_rule
        def _(info: Any) -> StructConstructorSpec | None:
            kind: Any = info.type
            if is_dataclass(kind):
                defaults = {one.name: _default(info.default, one) for one in fields(kind)}
                in_group = kind.__module__ != OPTIONS
                if self.model is not None and not in_group:
                    defaults["model"] = self.model
                make: Any = kind
                return StructConstructorSpec(make, tuple(_options(make, defaults, short, in_group)))
            if kind is self.command:
                defaults = {name: value.default for name, value in inspect.signature(self.command).parameters.items()}
                options = _options(self.command, defaults | dict(self.defaults), short)
                return StructConstructorSpec(functools.partial(functools.partial, self.command), tuple(options))
            return None

        @registry.primitive_rule
        def _(info: Any) -> PrimitiveConstructorSpec | None:
            return _numbers_by_name_spec() if info.type == dict[str, float] else None

        return registry

    def names(self) -> list[str]:
        """All options, by their names on the command line."""
        hints, found = get_type_hints(self.command, include_extras=True), ["--help", WHOLE_HELP, "--config"]
        for name, parameter in inspect.signature(self.command).parameters.items():
            default = self.defaults.get(name, parameter.default)
            kind, *marks = get_args(hints[name]) if hasattr(hints[name], "__metadata__") else (hints[name],)
            if is_dataclass(default):
                found += [f"--{each}" for each in option_names(default, f"{name.replace('_', '-')}.")]
            elif is_dataclass(kind):
                inner = get_type_hints(kind, include_extras=True)
                found += [f"--{each.replace('_', '-')}" for each, hint in inner.items() if not _by_place(hint)]
            elif parameter.kind is parameter.KEYWORD_ONLY:
                named = next((mark.name for mark in marks if getattr(mark, "name", None)), name)
                found.append(f"--{named.replace('_', '-')}")
        return found

    def _groups(self) -> dict[str, str]:
        """A description of each group of options."""
        said, found = _said(self.command), {}
        for name, group in self.defaults.items():
            if is_dataclass(group):
                plain = PLAIN.get(type(group), ())
                inner = [one.name.replace("_", "-") for one in fields(group) if one.name not in plain]
                found[f"--{name.replace('_', '-')}.*"] = f"{said[name].rstrip('.')}: {', '.join(inner)}"
        return found


def option_names(settings: Any, group: str = "") -> dict[str, Any]:
    """The options equivalent to `settings`, a dataclass, by their names on the command line without the dashes."""
    found: dict[str, Any] = {}
    for one in fields(settings):
        value, name = getattr(settings, one.name), one.name.replace("_", "-")
        if is_dataclass(value):
            found |= option_names(value, f"{group}{name}.")
        else:
            found[name if one.name in PLAIN.get(type(settings), ()) else f"{group}{name}"] = value
    return found


def _by_place(hint: Any) -> bool:
    """Whether a value is given by its place on the command line, so that it has no option."""
    return any(mark in getattr(hint, "__metadata__", ()) for mark in get_args(tyro.conf.Positional[str])[1:])


def _options(
    of: Callable[..., Any], defaults: Mapping[str, Any], short: bool, in_group: bool = False
) -> Iterator[StructFieldSpec]:
    hints, said = get_type_hints(of, include_extras=True), _said(of)
    plain = PLAIN.get(of, ()) if isinstance(of, type) else ()
    for name, default in defaults.items():
        marks: list[Any] = []
        if default is None and (name in plain or not in_group):
            marks += [tyro.conf.DisallowNone, tyro.conf.arg(help_behavior_hint="")]
        if name in plain:
            marks.append(tyro.conf.arg(prefix_name=False))
            marks += [METRICS_SHOWN] if name == "metrics" else []
        elif short and not is_dataclass(default) and (in_group or name in RARE):
            marks.append(tyro.conf.Suppress)
        kind, *own = get_args(hints[name]) if hasattr(hints[name], "__metadata__") else (hints[name],)
        missing = default is inspect.Parameter.empty
        marked: Any = Annotated[(kind, *marks, *own)] if marks or own else kind
        yield StructFieldSpec(name, marked, tyro.MISSING_NONPROP if missing else default, said.get(name))


def _default(instance: Any, of: Field[Any]) -> Any:
    """The value in `instance`, or else the default of the class."""
    if is_dataclass(instance):
        return getattr(instance, of.name)
    if of.default_factory is not MISSING:
        return of.default_factory()
    return inspect.Parameter.empty if of.default is MISSING else of.default


def _line(option: str, about: str) -> str:
    """A line of help, wrapped."""
    width = max(shutil.get_terminal_size().columns - 2, FEWEST_COLUMNS)
    return textwrap.fill(f"{option:18} {about}", width, subsequent_indent=" " * 19, break_on_hyphens=False)


def _said(of: Callable[..., Any]) -> dict[str, str]:
    """The description of every argument or attribute in the docstring; for a class, also in its bases."""
    kinds = reversed(of.__mro__) if isinstance(of, type) else (of,)
    parameters = [one for kind in kinds for one in docstring_parser.parse(kind.__doc__ or "").params]
    return {one.arg_name: " ".join((one.description or "").split()) for one in parameters}


def _numbers_by_name_spec() -> PrimitiveConstructorSpec[dict[str, float]]:
    """`--recovery.weights denoising 1 jacobian 10`: the same spelling whatever weights the recipe has."""
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME NUMBER ...]",
        instance_from_str=_numbers_by_name,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda numbers: [word for name, value in numbers.items() for word in (name, f"{value:g}")],
    )


def _numbers_by_name(words: list[str]) -> dict[str, float]:
    if len(words) % 2:
        raise ValueError("give a number after every name")
    return {name: float(number) for name, number in zip(words[::2], words[1::2], strict=True)}
