"""Wrong usage of the command line, said in our words: one line, with what to type instead."""

from __future__ import annotations

import difflib
import enum
import re
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, get_args

from llavacot_mlx.cli.defaults import config_file
from llavacot_mlx.cli.exit_codes import UsageError
from llavacot_mlx.errors import UserError

_PICTURE = re.compile(r"\.(png|jpe?g|webp|gif|bmp|tiff?|avif|hei[cf])$", re.IGNORECASE)
_EXAMPLE = "What is unusual here?"

# What people type from other programs, and what does it here.
_OTHER_COMMANDS = {
    "help": "--help",
    "version": "--version",
    **dict.fromkeys(("lora", "train", "finetune", "fine-tune", "sft", "lora_train"), "lora-train"),
    **dict.fromkeys(("chat", "generate", "run", "predict", "infer", "query"), "ask"),
    **dict.fromkeys(("quantize", "download", "pull"), "convert"),
    **dict.fromkeys(("merge",), "fuse"),
    **dict.fromkeys(("show", "list", "models", "sizes"), "info"),
    **dict.fromkeys(("replay", "html"), "trace"),
    "check": "data check",
    "stats": "data stats",
}
_OTHER_OPTIONS = {
    **dict.fromkeys(
        ("--image", "--prompt", "--question", "-p", "-i"),
        f'IMAGE and QUESTION have no flag: llavacot ask photo.jpg "{_EXAMPLE}"',
    ),
    "--train": "lora-train always trains; leave it out",
    "--test": "lora-train does not test; llavacot ask asks, --valid-data validates",
    "--verbose": "leave it out; --debug shows the traceback of an error",
    "--de-quantize": "it is called --dequantize here",
    "--upload-repo": "leave it out, and upload the written folder with hf upload",
}


def in_our_words(error: Any, ctx: Any, args: Sequence[str]) -> UserError:
    """The typer error of a command line that could not be parsed, as an error of ours.

    typer keeps the classes of these errors to itself, hence their names.
    """
    dashed = _dashed(error, ctx, args)
    if dashed is not None:
        return UsageError(dashed)
    match type(error).__name__:
        case "NoSuchOption":
            return UsageError(_no_such_option(error, ctx))
        case "MissingParameter":
            name = error.param.display_name_raw
            return _with_usage(f"{name} is missing", ctx)
        case "BadParameter":
            flag = max(error.param.opts, key=len)
            value = _value_of(error.param, ctx, args)
            if value is None and (default := ctx.lookup_default(error.param.name)) is not None:
                must = f"must be {_expected(error.param)}"
                return UserError(f"{config_file()}: {flag.removeprefix('--')}: {default}: {must}")
            given = "" if value is None else f" {value}"
            return UsageError(f"{flag}{given}: must be {_expected(error.param)}")
        case "BadOptionUsage":
            takes = "takes no value" if "not take" in error.message else "needs a value"
            return UsageError(f"{error.option_name} {takes}; see {ctx.command_path} --help")
    message = error.format_message()
    return _with_usage(message[:1].lower() + message[1:].rstrip("."), ctx)


def too_many_arguments(ctx: Any, args: Sequence[str]) -> UsageError:
    """The error about arguments that are one too many, such as a question without quotes."""
    _, words = _parsed(ctx, args)
    names = [each.display_name_raw for each in ctx.command.params if _is_argument(each)]
    for count in range(len(words), 1, -1):
        joined = " ".join(words[:count])
        if Path(joined).expanduser().exists():
            return UsageError(f"{joined}: a path with a space needs quotes: {_word(joined)}")
    if names[-1:] == ["QUESTION"]:
        first, question = _word(words[0]), _quoted(" ".join(words[1:]))
        return UsageError(f"the question needs quotes: {ctx.command_path} {first} {question}")
    extra = " ".join(words[len(names) :])
    return _with_usage(f"unexpected: {extra}", ctx)


def no_such_command(ctx: Any, names: Sequence[str], args: Sequence[str]) -> UsageError:
    """The error about a word in a command's place: another program's name, or a picture."""
    word, path = args[0], ctx.command_path
    is_top = ctx.parent is None
    if is_top and (instead := _OTHER_COMMANDS.get(word.lower())):
        topic = args[1] if word == "help" and len(args) > 1 else ""
        more = f", or {path} {topic} --help" if topic in names else ""
        return UsageError(f"there is no command {word}; try {path} {instead}{more}")
    if is_top and (command := _forgotten(args)):
        return UsageError(f"the command is missing: {path} {command}")
    close = [name for name in names if name.startswith(word.lower())]
    close = close or difflib.get_close_matches(word.lower(), names, n=1)
    if close:
        return UsageError(f"there is no command {word}; did you mean {path} {close[0]}?")
    return UsageError(f"there is no command {word}; there are {', '.join(names)}")


def check_order(image: str, question: str) -> None:
    """Raises UsageError where the picture and the question were swapped."""
    looks_asked = " " in image.strip() or image.endswith("?")
    if _is_picture(question) and looks_asked and not _is_picture(image):
        right = f"llavacot ask {_word(question)} {_quoted(image)}"
        raise UsageError(f"IMAGE comes first, then QUESTION: {right}")


def _forgotten(args: Sequence[str]) -> str | None:
    """The command line that was meant by one without its command; None where none is plain."""
    first = args[0]
    rest = [word for word in args[1:] if not word.startswith("-")]
    if _is_picture(first):
        return f"ask {_word(first)} {_quoted(' '.join(rest) or _EXAMPLE)}"
    if rest and _is_picture(rest[-1]):
        return f"ask {_word(rest[-1])} {_quoted(' '.join([first, *rest[:-1]]))}"
    if " " in first.strip():
        return f"ask photo.jpg {_quoted(first)}"
    path = Path(first).expanduser()
    if path.suffix == ".jsonl":
        return f"data check {_word(first)}"
    if path.suffix == ".json":
        return f"trace {_word(first)}"
    if path.is_dir():
        return f"info {_word(first)}"
    return None


def _is_picture(word: str) -> bool:
    """Whether a word is a picture's path by its look, or a file that exists."""
    if _PICTURE.search(word.strip()):
        return " " not in word.strip() or _is_file(word)
    return _is_file(word)


def _is_file(word: str) -> bool:
    try:
        return Path(word).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # too long for a name, a NUL, or no such home
        return False


def _dashed(error: Any, ctx: Any, args: Sequence[str]) -> str | None:
    """What to type for a question or a file that begins with a dash; None where none does."""
    kind = type(error).__name__
    if kind not in ("NoSuchOption", "MissingParameter", "BadOptionUsage"):
        return None
    known = {name for each in ctx.command.get_params(ctx) for name in (*each.opts, "-h")}
    words = [word for word in args if word.startswith("-") and _is_text(word, known)]
    if kind == "NoSuchOption":
        words = [word for word in words if word.startswith((error.option_name, "-"))]
    if not words or not any(_is_argument(each) for each in ctx.command.params):
        return None
    word = words[0]
    if _is_file(word):
        return f"{word}: a file that begins with a dash is written ./{word}"
    return f"what begins with a dash stands behind two dashes: {_behind_dashes(ctx, args, word)}"


def _behind_dashes(ctx: Any, args: Sequence[str], word: str) -> str:
    """The command line with `word` behind `--`, and with the arguments that follow it."""
    place = args.index(word)
    before, after = args[:place], args[place + 1 :]
    count = next((n for n, each in enumerate(after) if each.startswith("-")), len(after))
    others = [*before, *after[count:]]
    return " ".join(
        [ctx.command_path, *map(_word, others), "--", _quoted(word), *map(_word, after[:count])]
    )


def _is_text(word: str, known: Collection[str]) -> bool:
    """Whether a word that begins with a dash is no option: a number, a sentence, or a file."""
    if word.partition("=")[0] in known or word in ("-", "--"):
        return False
    return " " in word.partition("=")[0] or not re.match(r"--?[A-Za-z]", word) or _is_file(word)


def _no_such_option(error: Any, ctx: Any) -> str:
    name = error.option_name
    known = [
        opt
        for each in ctx.command.get_params(ctx)
        if not getattr(each, "hidden", False)
        for opt in each.opts
        if opt.startswith("-")
    ]
    text = f"there is no option {name}"
    if hint := _OTHER_OPTIONS.get(name):
        return f"{text}; {hint}"
    close = difflib.get_close_matches(name.replace("_", "-"), known, n=1)
    if close:
        return f"{text}; did you mean {close[0]}?"
    return f"{text}; {ctx.command_path} --help lists them"


def _value_of(parameter: Any, ctx: Any, args: Sequence[str]) -> str | None:
    """What was given for a parameter, as it was typed."""
    options, _ = _parsed(ctx, args)
    value = options.get(parameter.name)
    return None if value is None else str(value)


def _parsed(ctx: Any, args: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The values of the options as typed, and all words that are arguments."""
    options, rest, _ = ctx.command.make_parser(ctx).parse_args(args=list(args))
    named = [options.get(each.name) for each in ctx.command.params if _is_argument(each)]
    return options, [*(word for word in named if word is not None), *rest]


def _expected(parameter: Any) -> str:
    """What a parameter accepts, such as `a whole number`."""
    kind = parameter.type_descriptor.annotation
    kinds = [each for each in get_args(kind) if each is not type(None)] or [kind]
    kind = kinds[0]
    if kind is int:
        return "a whole number"
    if kind is float:
        return "a number"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "one of " + ", ".join(str(each.value) for each in kind)
    return "a path" if kind is Path else "something else"


def _with_usage(problem: str, ctx: Any) -> UsageError:
    return UsageError(f"{problem}. {' '.join(ctx.get_usage().split())}")


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _word(text: str) -> str:
    """A word as people type it in a shell."""
    return text if text == shlex.quote(text) else _quoted(text)


def _quoted(text: str) -> str:
    """A text in double quotes, as people type a question; in single ones where a shell needs it."""
    return shlex.quote(text) if re.search(r'["$`\\!]', text) else f'"{text}"'
