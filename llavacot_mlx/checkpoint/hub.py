"""Finds the folder of a model, and downloads it from the Hugging Face hub if needed.

A model that was downloaded once needs no network any more.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import io
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llavacot_mlx.checkpoint.folder_files import files_in
from llavacot_mlx.checkpoint.safetensors import find_weight_files
from llavacot_mlx.errors import UserError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

# Never .bin or .pt, which are pickles and run code when opened, and never .py.
ENDINGS = (".safetensors", ".json", ".jinja", ".txt")
FILES = [f"*{ending}" for ending in ENDINGS]

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")


@dataclass(frozen=True)
class Download:
    """The progress of a download, in bytes. Files that were already there count as done."""

    model: str
    origin: str
    """Where the files come from, such as `https://huggingface.co`."""
    done: int
    total: int


def find(model: str, report: Callable[[Download], None]) -> Path:
    """The folder of `model`: the folder of that name, or the downloaded files of that hub id.

    `report` is called before the download starts, with `done=0`, and then repeatedly; it is not
    called when nothing has to be downloaded.

    Raises UserError when there is no such folder, when the files cannot be downloaded, or when the
    disk has no room for them.
    """
    if not model:
        raise UserError("the model's name is empty; give a folder or an id like owner/name")
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"{model}: a file; a model is a folder with config.json and *.safetensors")
    if not is_id(model):
        raise UserError(
            f"{model}: no such folder; a model is a folder, or an id like owner/name on the hub"
        )
    return downloaded(model) or _download(model, report)


def is_id(name: str) -> bool:
    """Whether a name has the form of a hub id; the hub is not asked."""
    return _ID.fullmatch(name) is not None


def downloaded(model: str) -> Path | None:
    """The folder of an earlier, complete download; None if there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(model, local_files_only=True, allow_patterns=FILES))
    except LocalEntryNotFoundError:
        return None
    return folder if _is_whole(folder) else None


def _is_whole(folder: Path) -> bool:
    """Whether all weight files are there: an interrupted download leaves only some."""
    if not (folder / "config.json").is_file():
        return False
    if not files_in(folder, ".safetensors"):
        return False
    try:
        find_weight_files(folder)
    except UserError as problem:
        return "is missing" not in str(problem)
    return True


def _download(model: str, report: Callable[[Download], None]) -> Path:
    from huggingface_hub import HfApi, constants, hf_hub_download
    from huggingface_hub.utils import logging

    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"{model}: not downloaded yet, and HF_HUB_OFFLINE forbids the network; "
            "unset it, or name a folder"
        )
    logging.set_verbosity_error()  # its advice on tokens and retries would disturb the bar
    try:
        api = HfApi()
        sizes = _sizes(model, api.model_info(model, files_metadata=True, timeout=10))
        _check_room(model, Path(constants.HF_HUB_CACHE), sum(sizes.values()))
        progress = _Progress(Download(model, api.endpoint, 0, sum(sizes.values())), report)
        # One file after the other, in this thread: Ctrl-C then stops at once, and finished files
        # are kept. The hub's client downloads the parts of a large file in parallel.
        for name, size in sizes.items():
            path = hf_hub_download(model, name, tqdm_class=progress.of_file(size))
            progress.file_done(size)
    except UserError:
        raise
    except Exception as error:
        raise UserError(download_error(model, error)) from error
    folder = Path(path).parents[name.count("/")]
    if not _is_whole(folder):
        raise UserError(f"{model}: changed on the hub during the download; run this again")
    return folder


def _sizes(model: str, info: ModelInfo) -> dict[str, int]:
    """The files to download and their sizes in bytes, the smallest first."""
    sizes = {
        file.rfilename: file.size or 0
        for file in info.siblings or ()
        if any(fnmatch.fnmatch(file.rfilename, pattern) for pattern in FILES)
    }
    if "config.json" not in sizes or not any(name.endswith(".safetensors") for name in sizes):
        raise UserError(
            f"{model}: has no config.json and *.safetensors on the hub, so nothing was downloaded; "
            "other weight formats are not read"
        )
    return dict(sorted(sizes.items(), key=lambda item: (item[1], item[0])))


def _check_room(model: str, cache: Path, needed: int) -> None:
    existing = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UserError(
            f"{model}: {needed / 1e9:.1f} GB to download, and {existing} has {free / 1e9:.1f} GB "
            "free; make room, or set HF_HOME to a folder on a larger disk"
        )


def download_error(model: str, error: Exception) -> str:
    """A one-line message for an error of the hub's client, which says what to do about it."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return (
            f"{model}: its owner wants you to agree to terms first; do so on the model's page, "
            "then log in with: hf auth login"
        )
    if isinstance(error, RepositoryNotFoundError):
        return f"{model}: no such folder here and no such model on the hub (private: hf auth login)"
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return (
        f"{model}: not downloaded yet, and the download failed ({reason}); "
        "check the network and run this again, or name a folder"
    )


class _Progress:
    """Combines the hub client's progress bars, several per file, into one `Download`."""

    def __init__(self, start: Download, report: Callable[[Download], None]) -> None:
        self._now = start
        self._report = report
        self._files_done = 0  # bytes of the complete files
        report(start)

    def file_done(self, size: int) -> None:
        self._files_done += size
        self._reach(self._files_done)

    def of_file(self, size: int) -> type[Any]:
        """A subclass of tqdm that draws nothing and reports the progress instead."""
        from tqdm import tqdm  # type: ignore[import-untyped]

        reach, before = self._reach, self._files_done

        class Reporting(tqdm):
            def __init__(self, *args: Any, **options: Any) -> None:  # tqdm's signature
                super().__init__(*args, **{**options, "file": io.StringIO()})

            def display(self, msg: str | None = None, pos: int | None = None) -> bool:
                reach(before + min(int(self.n), size))
                return True

        return Reporting

    def _reach(self, done: int) -> None:
        if done > self._now.done:  # one bar counts bytes received, another bytes on the disk
            self._now = dataclasses.replace(self._now, done=done)
            self._report(self._now)
