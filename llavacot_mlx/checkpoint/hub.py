"""Finds the folder of a model, and downloads it from the Hugging Face hub if needed.

A model that was downloaded once needs no network any more. Before the first weight is fetched, the
list of files and config.json have to be those of a model that can be run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llavacot_mlx.checked import brief, named, read_json
from llavacot_mlx.checkpoint.completeness import check_names
from llavacot_mlx.checkpoint.config_json import parse_config
from llavacot_mlx.checkpoint.folder_files import files_in, is_visible
from llavacot_mlx.checkpoint.model_name import ModelName, parse_model_name
from llavacot_mlx.checkpoint.safetensors import find_weight_files, read_weight_map
from llavacot_mlx.checkpoint.weight_files import INDEX_NAME, choose_weight_files
from llavacot_mlx.errors import MissingFileError, UserError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

# Never .bin or .pt, which are pickles and run code when opened, and never .py.
ENDINGS = (".safetensors", ".json", ".jinja", ".txt")
_OTHER_WEIGHTS = {".gguf": "GGUF", ".bin": "pickled", ".pt": "pickled", ".pth": "pickled"}


@dataclass(frozen=True)
class Download:
    """The progress of a download, in bytes. Files that were already there count as done."""

    model: str
    origin: str
    """Where the files come from, such as `https://huggingface.co`."""
    done: int
    total: int


@dataclass(frozen=True)
class RemoteModel:
    """What the hub has of a model that can be run, looked up before a weight is fetched."""

    name: ModelName
    commit: str
    """The revision that the branch or tag stood for; all files are of it."""
    origin: str
    """Where the files come from, such as `https://huggingface.co`."""
    sizes: dict[str, int]
    """The files that are the model, with their sizes in bytes."""
    cache: Path
    """The folder in the hub's cache in which the files that were fetched lie."""

    @property
    def weights(self) -> list[str]:
        return sorted(file for file in self.sizes if file.endswith(".safetensors"))

    @property
    def settings(self) -> list[str]:
        """The small files: configuration, tokenizer, index."""
        return sorted(file for file in self.sizes if not file.endswith(".safetensors"))


def find(
    model: str,
    report: Callable[[Download], None] = lambda _: None,
    *,
    revision: str | None = None,
    any_type: bool = False,
) -> Path:
    """The folder of `model`: the folder of that name, or the downloaded files of that hub id.

    `model` is whatever `parse_model_name` understands. `report` is called before the download
    starts, with `done=0`, and then repeatedly, from several threads but one at a time; it is not
    called when nothing has to be downloaded. `any_type` is for models that other programs run, such
    as judges: only Mllama models are checked before the download.

    Raises UserError when there is no such folder, when the files cannot be downloaded or are not
    those of a model that can be run, or when the disk has no room for them.
    """
    name = parse_model_name(model, revision)
    if name.folder is not None:
        return name.folder
    return downloaded(name) or _download(name, report, any_type)


def find_here(model: str, where: object, instead: str) -> Path:
    """The folder of a model that a file names, without a network.

    `where` is what names it, such as `search.json`. A file from anybody must not start a download;
    only a person does. Raises UserError, which ends with `instead`, what the person can do, when
    the model is not on this machine.
    """
    with named(where):
        name = parse_model_name(model)
    folder = name.folder or downloaded(name)
    if folder is None:
        raise UserError(
            f"{where} names the model {brief(name)}, which is not on this machine, and nothing is "
            f"downloaded that only a file names: {instead}"
        )
    return folder


def downloaded(name: ModelName) -> Path | None:
    """The folder of an earlier, complete download; None if there is none."""
    from huggingface_hub import get_cached_repo_tree, try_to_load_from_cache
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    assert name.id is not None
    config = try_to_load_from_cache(name.id, "config.json", revision=name.revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    try:
        tree = get_cached_repo_tree(name.id, revision=name.revision)
    except CachedRepoTreeNotFoundError:  # another program downloaded it, file by file
        tree = []
    return (
        folder if _is_whole(folder, [file.path for file in tree if _is_usable(file.path)]) else None
    )


def _is_usable(file: str) -> bool:
    """Whether a file of a repository may be downloaded.

    Files in folders, such as `original/` or a trainer's checkpoints, are not the model's.
    """
    return "/" not in file and is_visible(file) and file.endswith(ENDINGS)


def _is_whole(folder: Path, listed: Collection[str]) -> bool:
    """Whether all files are there, of those that are `listed` on the hub if that is known.

    An interrupted download leaves only some. What else is wrong, whoever reads the files says.
    """
    if not files_in(folder, ".safetensors"):
        return False
    settings = [file for file in listed if not file.endswith(".safetensors")]
    if not all((folder / file).exists() for file in settings):
        return False
    try:
        config = read_json(folder / "config.json")
        if _is_mllama(config):
            check_names([file.name for file in files_in(folder)], folder, config)
        find_weight_files(folder)
    except MissingFileError:
        return False
    except UserError:
        return True
    return True


def _is_mllama(config: Any) -> bool:
    return isinstance(config, dict) and config.get("model_type") == "mllama"


def check_online(name: ModelName) -> None:
    """Raises UserError when the network is forbidden."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"{name}: not downloaded yet, and HF_HUB_OFFLINE forbids the network; "
            "unset it, or name a folder"
        )


def look_up(name: ModelName, *, any_type: bool = False) -> RemoteModel:
    """Looks a model up on the hub: its config.json and its list of files.

    Raises UserError when there is no such model, it cannot be run, or there is no network.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import logging

    check_online(name)
    assert name.id is not None
    logging.set_verbosity_error()  # its advice on tokens and retries would disturb the bar
    with _told(name):
        api = HfApi()
        info = api.model_info(name.id, revision=name.revision, files_metadata=True, timeout=10)
        sizes = _usable_files(name, info)
        config_file = fetch(name, name.revision, "config.json")
        with named(name):
            config = read_json(config_file)
        _check_config(name, config, sizes, any_type)
        wanted = _wanted_files(name, info.sha, sizes)
        assert info.sha is not None
        return RemoteModel(name, info.sha, api.endpoint, wanted, config_file.parent)


def _download(name: ModelName, report: Callable[[Download], None], any_type: bool) -> Path:
    from huggingface_hub import constants

    remote = look_up(name, any_type=any_type)
    assert name.id is not None
    total = sum(remote.sizes.values())
    with _told(name):
        _check_room(name, Path(constants.HF_HUB_CACHE), total)
        progress = _Progress(Download(str(name), remote.origin, 0, total), report)
        _fetch_all(name.id, remote.commit, remote.sizes, progress)
    if not all((remote.cache / file).exists() for file in remote.sizes):
        raise UserError(f"{name}: changed on the hub during the download; run this again")
    return remote.cache


@contextlib.contextmanager
def _told(name: ModelName) -> Iterator[None]:
    """Turns errors of the hub's client into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(download_error(name, error)) from error


def _usable_files(name: ModelName, info: ModelInfo) -> dict[str, int]:
    """The files that may be downloaded, with their sizes in bytes.

    Raises UserError when there is no model that can be read among them.
    """
    files = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    usable = {file: size for file, size in files.items() if _is_usable(file)}
    if "config.json" not in usable or not any(file.endswith(".safetensors") for file in usable):
        raise UserError(
            f"{name}: has no config.json and *.safetensors on the hub, so nothing was downloaded; "
            f"{_instead(files)}"
        )
    return usable


def _instead(files: Collection[str]) -> str:
    if "adapter_config.json" in files:
        return "it is an adapter: download it to a folder, and convert that"
    for ending, kind in _OTHER_WEIGHTS.items():
        if any(file.endswith(ending) for file in files):
            return f"it has {kind} weights ({ending}), and only safetensors are read"
    folders = sorted({file.partition("/")[0] for file in files if file.endswith(".safetensors")})
    if folders:
        return f"its weights are in {', '.join(folders[:2])}/, and only a whole model is read"
    return "other weight formats are not read"


def _check_config(name: ModelName, config: Any, files: Collection[str], any_type: bool) -> None:
    """Raises UserError for a model that cannot be run, before its weights are fetched."""
    if any_type and not _is_mllama(config):
        return
    parse_config(config, Path(str(name)) / "config.json")
    check_names(files, name, config)


def _wanted_files(name: ModelName, commit: str | None, sizes: Mapping[str, int]) -> dict[str, int]:
    """The files that are the model, with their sizes in bytes."""
    weights = [file for file in sizes if file.endswith(".safetensors")]
    weight_map = None
    if INDEX_NAME in sizes:
        weight_map = read_weight_map(fetch(name, commit, INDEX_NAME))
    chosen = choose_weight_files(weights, weight_map, name).names
    return {file: sizes[file] for file in sizes if file in chosen or file not in weights}


def fetch(name: ModelName, revision: str | None, file: str) -> Path:
    """Downloads one small file to the hub's cache, unless it is there."""
    from huggingface_hub import hf_hub_download

    assert name.id is not None
    silent = _Progress(Download(str(name), "", 0, 0), lambda _: None).bar
    return Path(hf_hub_download(name.id, file, revision=revision, tqdm_class=silent))


def _fetch_all(id: str, commit: str | None, files: Collection[str], progress: _Progress) -> None:
    """Downloads the files, several at a time. Ctrl-C stops all of them at once.

    The hub's client waits for its threads, which only stop when their progress bars raise, so it
    runs beside this thread, which hears Ctrl-C.
    """
    from huggingface_hub import snapshot_download

    failed: list[Exception] = []

    def download() -> None:
        try:
            patterns = [_escaped(file) for file in files]
            snapshot_download(id, revision=commit, allow_patterns=patterns, tqdm_class=progress.bar)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=download, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.1)
    except BaseException:
        progress.stop()
        raise
    if failed:
        raise failed[0]
    progress.finish()


def _escaped(name: str) -> str:
    """A pattern that matches one name."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _check_room(model: object, cache: Path, needed: int) -> None:
    existing = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UserError(
            f"{model}: {needed / 1e9:.1f} GB to download, and {existing} has {free / 1e9:.1f} GB "
            "free; make room, or set HF_HOME to a folder on a larger disk"
        )


def download_error(model: object, error: Exception) -> str:
    """A one-line message for an error of the hub's client, which says what to do about it."""
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return (
            f"{model}: its owner wants you to agree to terms first; do so on the model's page, "
            "then log in with: hf auth login"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{model}: the model on the hub has no such revision; give a branch, tag or commit"
    if isinstance(error, RepositoryNotFoundError):
        return f"{model}: no such folder here and no such model on the hub (private: hf auth login)"
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return (
        f"{model}: not downloaded yet, and the download failed ({reason}); "
        "check the network and run this again, or name a folder"
    )


class _Progress:
    """Combines the hub client's progress bars into one `Download`."""

    def __init__(self, start: Download, report: Callable[[Download], None]) -> None:
        self._now = start
        self._report = report
        self._lock = threading.Lock()
        self._is_stopped = False
        report(start)

    def stop(self) -> None:
        """Makes every bar raise, which ends the thread that draws it."""
        self._is_stopped = True

    def finish(self) -> None:
        self._reach(self._now.total)

    @property
    def bar(self) -> type[Any]:
        """A subclass of tqdm that draws nothing and reports the progress instead."""
        from tqdm import tqdm  # type: ignore[import-untyped]

        progress = self

        class Reporting(tqdm):
            def __init__(self, *args: Any, **options: Any) -> None:  # tqdm's signature
                options.pop("name", None)
                super().__init__(*args, **{**options, "file": io.StringIO()})

            def update(self, n: float | None = 1) -> bool | None:
                if progress._is_stopped:
                    raise _StoppedError
                return bool(super().update(n))

            def display(self, msg: str | None = None, pos: int | None = None) -> bool:
                if self.unit == "B":  # another bar counts files
                    progress._reach(int(self.n))
                return True

        return Reporting

    def _reach(self, done: int) -> None:
        with self._lock:
            # One bar counts bytes received, another bytes on the disk.
            done = min(done, self._now.total)
            if done > self._now.done:
                self._now = dataclasses.replace(self._now, done=done)
                self._report(self._now)


class _StoppedError(Exception):
    """The download was stopped from the keyboard."""
