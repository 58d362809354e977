"""What a person may give as a model: a folder, an id of the hub, or an address of one."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from llavacot_mlx.checked import brief, quoted
from llavacot_mlx.errors import UserError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")
_REVISION = re.compile(r"[\w.][\w./+-]*")
_HUBS = ("huggingface.co", "hf.co", "hf-mirror.com")
_MAX_SHOWN = 150  # characters
_OTHER_KINDS = {"datasets": "a data set", "spaces": "a space", "collections": "a collection"}
_IN_A_REPOSITORY = ("tree", "blob", "resolve", "raw", "commit")
_CACHED = re.compile(r"models--(.+?)--(.+)")


@dataclass(frozen=True)
class ModelName:
    """A model, here or on the hub. Its text form means the same model again."""

    folder: Path | None = None
    id: str | None = None
    """`owner/name`; None for a folder."""
    revision: str | None = None
    """A branch, tag or commit on the hub; None for its main branch."""

    def __str__(self) -> str:
        if self.folder is not None:
            return str(self.folder)
        return f"{self.id}@{self.revision}" if self.revision else str(self.id)


def parse_model_name(text: str, revision: str | None = None) -> ModelName:
    """Finds out which model `text` means, without a network.

    It may be a folder, a folder of the hub's cache, `owner/name`, `owner/name@revision`, or the
    address of a model or one of its files on the hub; with white space or quotes around it, or a
    slash at its end. `revision` is for an id that has none.

    Raises UserError when it is none of these.
    """
    try:
        return _parsed(text, revision)
    except ValueError:  # of urllib, for what is no address
        raise UserError(f"{_shown(text)}: is no name of a model") from None


def _parsed(text: str, revision: str | None) -> ModelName:
    if folder := _folder(text):
        if revision is not None:
            raise UserError(
                f"--revision {revision}: goes with an id on the hub; {_shown(text)} is a folder"
            )
        return ModelName(folder=folder)
    name = text.strip().strip("'\"").strip()
    if not name:
        raise UserError("the model's name is empty; give a folder or an id like owner/name")
    found = _addressed(name) or _named(name)
    if found is None:
        raise UserError(
            f"{_shown(text)}: no such folder; a model is a folder, or an id like owner/name on the "
            "hub"
        )
    given = [each for each in (found.revision, revision) if each is not None]
    if len(set(given)) > 1:
        raise UserError(
            f"{_shown(text)} names the revision {brief(given[0])}, and --revision says {given[1]}"
        )
    if given and not _REVISION.fullmatch(given[0]):
        raise UserError(
            f"{quoted(given[0])} is no name of a revision: give a branch, a tag or a commit"
        )
    return ModelName(id=found.id, revision=given[0] if given else None)


def _shown(text: str) -> str:
    """A name as errors repeat it; it may be a path."""
    return brief(text, _MAX_SHOWN)


def is_model_name(text: str) -> bool:
    """Whether `text` has the form of a model's name, whether or not there is such a model."""
    try:
        parse_model_name(text)
    except UserError:
        return False
    return True


def _folder(text: str) -> Path | None:
    """The folder that a text means; None if there is none. Raises UserError for a file."""
    stripped = text.strip().strip("'\"").strip()
    if not stripped:
        return None
    plain = unquote(urlsplit(stripped).path) if stripped.startswith("file://") else stripped
    # A path that was dragged into a terminal has its spaces escaped.
    for candidate in (text, plain, plain.replace("\\ ", " ")):
        try:
            folder = Path(candidate).expanduser()
            if folder.is_dir():
                return _snapshot(folder)
            if folder.exists():
                beside = folder.parent
                hint = f": give its folder, {beside}" if (beside / "config.json").exists() else ""
                raise UserError(
                    f"{_shown(text)}: a file; a model is a folder with config.json and "
                    f"*.safetensors{hint}"
                )
        except (OSError, ValueError, RuntimeError):  # too long, a NUL, an unknown ~user
            continue
    return None


def _snapshot(folder: Path) -> Path:
    """Of a model's folder in the hub's cache, the snapshot that its main branch points to."""
    snapshots = folder / "snapshots"
    if not _CACHED.fullmatch(folder.resolve().name) or not snapshots.is_dir():
        return folder
    try:
        commit = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        commit = ""
    if commit and (snapshots / commit).is_dir():
        return snapshots / commit
    found = [each for each in sorted(snapshots.iterdir()) if each.is_dir()]
    if len(found) == 1:
        return found[0]
    raise UserError(
        f"{folder} is a folder of the hub's cache with {len(found)} snapshots: give one of them"
    )


def _addressed(name: str) -> ModelName | None:
    """The model that an address names; None if `name` is no address."""
    if name.startswith("hf://"):
        return _in_path(name, name.removeprefix("hf://").split("/"))
    parts = urlsplit(name if "://" in name else f"//{name}")
    own = urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc
    hosts = {*_HUBS, *(f"www.{host}" for host in _HUBS), *([own] if own else ())}
    if parts.netloc.lower() not in hosts:
        if parts.scheme in ("http", "https") and "://" in name:
            raise UserError(
                f"{brief(name)}: {brief(parts.netloc)} is not the Hugging Face hub: give an id "
                "like owner/name, or set HF_ENDPOINT to its address"
            )
        return None
    return _in_path(name, parts.path.split("/"))


def _in_path(name: str, parts: list[str]) -> ModelName:
    steps = [unquote(step) for step in parts if step]
    if steps and steps[0] in _OTHER_KINDS:
        raise UserError(f"{brief(name)} is the address of {_OTHER_KINDS[steps[0]]}, not of a model")
    if steps[:1] == ["models"]:
        del steps[0]
    found = _named("/".join(steps[:2]).removesuffix(".git")) if len(steps) > 1 else None
    if found is None:
        raise UserError(f"{brief(name)}: names no model; its address ends in owner/name")
    if len(steps) > 3 and steps[2] in _IN_A_REPOSITORY:
        length = 3 if steps[3] == "refs" else 1
        return ModelName(id=found.id, revision="/".join(steps[3 : 3 + length]))
    return found


def _named(name: str) -> ModelName | None:
    if match := _CACHED.fullmatch(name):
        name = "/".join(match.groups())
    name, _, revision = name.rstrip("/").partition("@")
    return ModelName(id=name, revision=revision or None) if _ID.fullmatch(name) else None
