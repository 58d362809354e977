"""Makes the flags of lora-train from the training settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from llavacot_mlx.cli.units import parse_bytes
from llavacot_mlx.errors import UserError
from llavacot_mlx.train.settings import Setting, settings_of

_FLAGS = {
    setting.flag.removeprefix("--").replace("-", "_"): setting
    for setting in settings_of()
    if setting.flag
}
"""The settings that have a flag, by the flag's parameter name, such as `batch_size`."""


def with_setting_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Adds a flag for each setting to a command, before the options that it declares itself.

    The command gets the flags' values as its first argument, a mapping for `given_settings`.
    """
    _, *own = inspect.signature(command, eval_str=True).parameters.values()

    def run(**options: Any) -> None:
        flags = {name: options.pop(name) for name in _FLAGS}
        command(flags, **options)

    parameters = [_parameter(name, setting) for name, setting in _FLAGS.items()]
    parameters += [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def given_settings(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The settings whose flags were given, nested as `settings_from` takes them.

    Raises UserError for a size that cannot be parsed.
    """
    values: dict[str, Any] = {}
    for name, setting in _FLAGS.items():
        if flags[name] is not None:
            *outer, inner = setting.path
            group = values.setdefault(outer[0], {}) if outer else values
            group[inner] = _parsed(flags[name], setting)
    return values


def _parsed(value: Any, setting: Setting) -> Any:
    if _is_list(setting):
        return value.split(",")
    if not setting.about.in_bytes:
        return value
    try:
        return parse_bytes(value)
    except UserError as problem:
        raise UserError(f"{setting.flag}: {problem}") from None


def _parameter(name: str, setting: Setting) -> inspect.Parameter:
    about = setting.about
    text = about.help
    if about.in_bytes:
        text = f"{text.removesuffix('.')}, such as 20GB."
    if setting.default_text:
        text += f" [default: {setting.default_text}]"
    option = typer.Option(
        *_names(setting),  # and no --no-… beside a switch
        metavar=about.metavar or "|".join(about.choices) or None,
        help=text,
    )
    kind = str if about.in_bytes or _is_list(setting) else setting.kind
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,  # then the YAML file decides, or the setting's default
        annotation=Annotated[kind | None, option],
    )


def _names(setting: Setting) -> tuple[str, ...]:
    """The flag, and -m for --model as in the other commands."""
    return (setting.flag, "-m") if setting.flag == "--model" else (setting.flag,)


def _is_list(setting: Setting) -> bool:
    return isinstance(setting.default, tuple)
