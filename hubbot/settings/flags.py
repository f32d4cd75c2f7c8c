"""The options of the table as flags of a command: `@takes("variants", "out")` gives it both, in one argument."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Annotated, Any

import typer

from hubbot.settings.options import OPTIONS, Option, with_parts_of_datasets

__all__ = ["SOURCE", "Flags", "takes"]

Flags = Mapping[str, Any]  # setting -> value; None: the flag was not given

_FLAGS = {option.flag: option for option in OPTIONS if option.flag}
SOURCE = "What to quantize"
_PANELS = {
    SOURCE: "revision variants strict imatrix allow-unlicensed allow-pickle",
    "Calibration and evaluation": "calibration samples length seed evaluation conversations context stride",
    "Machine and output": "out device benchmark check-vllm force",
    "Publishing": "publish namespace gate",
}
_PANEL_OF = {flag: panel for panel, flags in _PANELS.items() for flag in flags.split()}


def takes(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags that are named; what was given reaches it as `flags`, setting by setting."""
    chosen = {name.replace("-", "_"): _FLAGS[name] for name in names}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def called(**given: Any) -> None:
            told = {option.setting: given.pop(name) for name, option in chosen.items()}
            command(**given, flags=with_parts_of_datasets(told))

        signature = inspect.signature(command, eval_str=True)
        own = [each for each in signature.parameters.values() if each.name != "flags"]
        added = [_parameter(name, option) for name, option in chosen.items()]
        parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*own, *added)]
        called.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return called

    return decorate


def _parameter(name: str, option: Option) -> inspect.Parameter:
    kind = option.type | None
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, _described(option)]
    )


def _described(option: Option) -> Any:
    flag, default = option.flag or "", option.default
    names, shown = [f"--{flag}"], "" if default is None else str(default)
    if option.type is bool:
        names = [f"--{flag}/--no-{flag}"] if default else names
        shown = f"--{flag}" if default else ""
    return typer.Option(*names, help=option.meaning, rich_help_panel=_PANEL_OF[flag], show_default=shown or False)
