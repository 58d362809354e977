"""Training rows: a file, or a folder of files, each row read when it is needed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from llavacot_mlx.errors import UserError
from llavacot_mlx.prompt.image_source import LocatedImage, locate_image
from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.prompt.tokenizer import Tokenizer
from llavacot_mlx.rows.conversation import Conversation, parse_row
from llavacot_mlx.rows.row_file import RowFile
from llavacot_mlx.train.data.encoding import encode
from llavacot_mlx.train.data.sample import Sample

# A stage's tag, or the key of LLaVA-CoT-100k's rows, as JSON may spell them.
_STAGED = re.compile(
    rb'(?:<|\\u003[cC])(?:%b)(?:>|\\u003[eE])|"conversations"\s*:'
    % b"|".join(stage.tag.encode() for stage in Stage)
)


@dataclass(frozen=True)
class Dataset:
    """The rows of one file, each read when it is needed.

    Safe to read from several threads.
    """

    rows: RowFile
    images: Path
    """The folder that the rows' image paths are relative to."""
    images_anywhere: bool = False
    """Whether an image may lie outside of that folder."""

    @classmethod
    def open(cls, path: Path, images: Path | None, *, images_anywhere: bool = False) -> Dataset:
        """Indexes the rows of a file.

        `images` is the folder of the images, by default the folder of the file. Raises UserError
        when the file or the folder is missing, or when there is no row.
        """
        folder = path.expanduser().parent if images is None else images.expanduser()
        if images is not None and not folder.is_dir():
            raise UserError(f"{images}: there is no such folder of pictures")
        return cls(RowFile.open(path, _STAGED), folder, images_anywhere)

    @property
    def file(self) -> Path:
        return self.rows.file

    @property
    def digest(self) -> str:
        """SHA-256 of the file, in hexadecimal."""
        return self.rows.digest

    @property
    def has_stages(self) -> bool:
        """Whether the answers should have the four stages: some row has a stage tag, or the form of
        LLaVA-CoT-100k. Otherwise the rows are plain chats."""
        return self.rows.is_marked

    def __len__(self) -> int:
        return len(self.rows)

    def line(self, index: int) -> int:
        """Number, from 1, of row `index`, from 0: its line, or its place in an array."""
        return self.rows.number(index)

    def where(self, index: int) -> str:
        """File and row for messages, such as `train.jsonl, row 3`."""
        return self.rows.where(index)

    def conversation(self, index: int) -> Conversation:
        """Reads row `index`.

        Raises RowError when it is not a conversation, and UserError when the file was changed since
        it was opened.
        """
        return parse_row(self.rows.text(index), self.where(index))

    def image_path(self, index: int) -> LocatedImage | None:
        """The image of row `index`, which may not exist. Raises as `conversation` does."""
        return self.located(self.conversation(index))

    def sample(self, index: int, tokenizer: Tokenizer) -> Sample:
        """Row `index` as the model reads it. Raises as `conversation` and `encode` do."""
        return self.encoded(self.conversation(index), tokenizer)

    def encoded(self, conversation: Conversation, tokenizer: Tokenizer) -> Sample:
        """A row as the model reads it. Raises as `encode` does."""
        anywhere = self.images_anywhere
        return encode(conversation, tokenizer, self.images, images_anywhere=anywhere)

    def located(self, conversation: Conversation) -> LocatedImage | None:
        """Where the image of a row is; None without one."""
        if conversation.image is None:
            return None
        return locate_image(conversation.image, self.images, anywhere=self.images_anywhere)


@dataclass(frozen=True)
class Splits:
    """The training, validation and test datasets."""

    train: Dataset
    valid: Dataset | None
    test: Dataset | None


def open_splits(path: Path, images: Path | None, *, images_anywhere: bool = False) -> Splits:
    """Opens training data: a file, or a folder with train.jsonl and optionally valid and test.

    The optional files of a folder are `valid.jsonl` and `test.jsonl`; each may also end in `.json`.

    Raises UserError as `Dataset.open` does.
    """
    folder = path.expanduser()
    if not folder.is_dir():
        return Splits(Dataset.open(path, images, images_anywhere=images_anywhere), None, None)
    train, valid, test = (
        _open_split(path, name, images, images_anywhere) for name in ("train", "valid", "test")
    )
    if train is None:
        raise UserError(f"{path}: there is no train.jsonl in this folder")
    return Splits(train, valid, test)


def _open_split(
    folder: Path, name: str, images: Path | None, images_anywhere: bool
) -> Dataset | None:
    files = (folder / f"{name}.jsonl", folder / f"{name}.json")
    there = next((file for file in files if file.expanduser().exists()), None)
    if there is None:
        return None
    return Dataset.open(there, images, images_anywhere=images_anywhere)
