"""Resolves --model and --adapter-path to folders, and downloads a model that is not there yet."""

from __future__ import annotations

import dataclasses
import re
import sys
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llavacot_mlx import demo
from llavacot_mlx.checked import brief, named
from llavacot_mlx.checkpoint import hub
from llavacot_mlx.checkpoint.model_name import parse_model_name
from llavacot_mlx.checkpoint.safetensors import weights_note
from llavacot_mlx.cli.defaults import default_model
from llavacot_mlx.cli.printable import short_line
from llavacot_mlx.cli.units import format_bytes
from llavacot_mlx.errors import UserError

if TYPE_CHECKING:
    from llavacot_mlx.cli.views.bars import BytesBar

# `llavacot convert` without arguments shows the whole command, which is too long for this line.
_DEMO_NOTICE = (
    "demo model (knows pictures of colored shapes only); for the real one: llavacot convert"
)


@dataclass(frozen=True)
class ResolvedModel:
    """A model's folder on this machine, and the name that the person gave it."""

    name: str
    """The path of a folder, or a hub id with the revision, if one was given."""
    folder: Path
    adapter: Path | None = None
    """The folder of the adapter to apply to it."""

    @property
    def short_name(self) -> str:
        return self.folder.resolve().name if Path(self.name).is_dir() else self.name


def resolve_model(
    name: str | None, revision: str | None = None, *, named_in: Path | str | None = None
) -> ResolvedModel:
    """The model of `--model`; without a name, the default one, or else the demo model.

    The demo model comes with a notice on stderr. A hub id that is not on the disk yet is
    downloaded, which is reported on stderr; unless the name comes from the content of the file or
    folder `named_in`, which is an error then.
    """
    if name is None and (default := default_model()):
        name, origin = default
        with named(origin):
            return resolve_model(name, revision)
    if name is None:
        if revision is not None:
            raise UserError(f"--revision {revision}: goes with --model and an id on the hub")
        folder = demo.model_path()
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder}: no demo model in this installation; give --model a folder")
        print(_DEMO_NOTICE, file=sys.stderr)
        return ResolvedModel(str(folder), folder)
    parsed = parse_model_name(name, revision)
    if named_in is None:
        folder = ensure_downloaded(str(parsed))
    else:
        folder = hub.find_here(str(parsed), named_in, f"give --model {brief(parsed)}")
    if note := weights_note(folder):
        print(f"note: {short_line(note)}", file=sys.stderr)
        warnings.filterwarnings("ignore", re.escape(note))  # as `Assistant.load` says it
    return ResolvedModel(str(parsed), folder)


def resolve_adapted_model(
    name: str | None,
    adapter: Path | None,
    revision: str | None = None,
    *,
    named_in: Path | str | None = None,
) -> ResolvedModel:
    """The model of `--model` with the adapter of `--adapter-path`; by default, the adapter's base.

    `named_in` is as for `resolve_model`. A note on stderr says if the model is the base in another
    quantization. Raises UserError if there is no such adapter, or if it was trained on another
    model.
    """
    if adapter is None:
        return resolve_model(name, revision, named_in=named_in)
    from llavacot_mlx.checkpoint.adapter_config import AdapterConfig

    adapter = Path(str(adapter).strip()).expanduser()
    config = AdapterConfig.read(adapter)
    if name is None:
        with named(f"the base of {adapter}"):
            model = _resolve_base(config.base.model, revision)
    else:
        model = resolve_model(name, revision, named_in=named_in)
    if note := config.check_base(adapter, model.folder):
        print(f"note: {short_line(note)}", file=sys.stderr)
    return dataclasses.replace(model, adapter=adapter)


def _resolve_base(name: str, revision: str | None) -> ResolvedModel:
    try:
        return resolve_model(name, revision, named_in="its adapter_config.json")
    except UserError as problem:
        said = str(problem)
        raise UserError(said if "--model" in said else f"{said}; name it with --model") from None


def ensure_downloaded(name: str, *, any_type: bool = False) -> Path:
    """The folder of a named model, downloaded first if needed; stderr shows the download."""
    with ExitStack() as stack:
        return hub.find(name, _DownloadReporter(stack), any_type=any_type)


class _DownloadReporter:
    """Says what is downloaded before the first byte, then shows the progress."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._bar: BytesBar | None = None

    def __call__(self, download: hub.Download) -> None:
        if self._bar is None:
            from llavacot_mlx.cli.views.bars import BytesBar

            size = format_bytes(download.total)
            print(
                f"downloading {download.model}, {size}, from {download.origin} …", file=sys.stderr
            )
            self._bar = self._stack.enter_context(BytesBar("downloading"))
        self._bar.update(download.done, download.total)
