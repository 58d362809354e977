"""A checkpoint on the hub, read block by block over the network: no weight is stored here.

The hub serves any range of a file's bytes. So the headers come first, the conversion is planned
from them as from a folder, and each block is fetched when it is converted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from llavacot_mlx.checkpoint.hub import RemoteModel, download_error, fetch, look_up
from llavacot_mlx.checkpoint.model_name import ModelName
from llavacot_mlx.convert.blocks import Block
from llavacot_mlx.errors import LostConnectionError, UserError

_READERS = 4  # connections; one alone seldom fills a line
_TIMEOUT_S = 30.0  # without a byte
_TRIES = 6
_LONGEST_PAUSE_S = 60.0
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class StreamedCheckpoint:
    """A checkpoint of which only the settings and the headers are here."""

    folder: Path
    """Its files; those of the weights have their header and their size, and take no room."""
    blocks: HubBlocks


@contextlib.contextmanager
def open_streamed(name: ModelName) -> Iterator[StreamedCheckpoint]:
    """Looks a model up on the hub and fetches its settings and headers, for the block's length.

    Raises UserError when there is no such model, it cannot be run, or there is no network.
    """
    remote = look_up(name)
    blocks = HubBlocks(remote)
    with tempfile.TemporaryDirectory(prefix="llavacot-") as scratch:
        folder = Path(scratch)
        for file in remote.settings:
            shutil.copyfile(fetch(name, remote.commit, file), folder / file)
        for file in remote.weights:
            _write_hollow(folder / file, blocks.header(file), remote)
        try:
            yield StreamedCheckpoint(folder, blocks)
        except UserError as problem:  # names a file of this folder, which nobody has seen
            text = str(problem).replace(str(folder), str(name))
            raise type(problem)(text) from None


def _write_hollow(file: Path, header: bytes, remote: RemoteModel) -> None:
    """Writes a file with a header and a hole of the size of its data."""
    with file.open("wb") as stream:
        stream.write(header)
        stream.truncate(remote.sizes[file.name])
    # A conversion knows versions of its source apart by size, time and header: here the commit
    # stands for the time, so that one that was interrupted resumes with the same commit only.
    moment = int(remote.commit[:12], 16)
    os.utime(file, ns=(moment, moment))


class HubBlocks:
    """Reads blocks of a model's files from the hub, several at a time."""

    readers = _READERS

    def __init__(self, remote: RemoteModel) -> None:
        self._remote = remote
        self._stopped = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends reads that are under way, also those that wait for another try."""
        self._stopped.set()

    def header(self, file: str) -> bytes:
        """Reads the header of a safetensors file, with the eight bytes of its length before it."""
        start = self._read(file, 0, 8)
        length = int.from_bytes(start, "little")
        if length > min(_MAX_HEADER_BYTES, self._remote.sizes[file] - 8):
            raise UserError(f"{self._remote.name}: {file} is no safetensors file")
        return start + self._read(file, 8, 8 + length)

    def read(self, block: Block) -> np.ndarray:
        """Reads a block, (bytes,) of uint8.

        Raises LostConnectionError when the hub cannot be reached, after several tries, and
        UserError when it refuses.
        """
        entry = block.step.source.entry
        data = self._read(entry.file.name, entry.start + block.start, entry.start + block.stop)
        return np.frombuffer(data, np.uint8)

    def _read(self, file: str, start: int, stop: int) -> bytes:
        """Reads the bytes `start` to `stop` (exclusive) of a file.

        A try that breaks off is followed by one for the rest.
        """
        data = bytearray()
        failures = 0
        while len(data) < stop - start:
            before = len(data)
            try:
                problem, pause = self._try(file, start + before, stop, data)
            except UserError:
                raise
            except Exception as error:  # of the hub's client, and of whatever it is built on
                problem, pause = str(error).strip().partition("\n")[0] or type(error).__name__, None
            if len(data) == stop - start:
                break
            if len(data) > before:  # it works, if not for long
                failures = 0
                continue
            failures += 1
            pause = 2.0 ** (failures - 1) if pause is None else pause
            if failures == _TRIES or self._stopped.wait(min(pause, _LONGEST_PAUSE_S)):
                raise LostConnectionError(
                    f"{self._remote.name}: {file} cannot be read from {self._remote.origin} "
                    f"({problem}); check the network, and run the same command again to go on"
                )
        return bytes(data)

    def _try(self, file: str, start: int, stop: int, data: bytearray) -> tuple[str, float | None]:
        """Appends what one request brings; returns why it may not be all, and a pause if asked for.

        Raises UserError when the hub refuses, and whatever its client raises.
        """
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        name, wanted = self._remote.name, stop - start
        assert name.id is not None
        url = hf_hub_url(name.id, file, revision=self._remote.commit)
        headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}"}
        request = get_session().stream("GET", url, headers=headers, timeout=_TIMEOUT_S)
        with request as response:
            if response.status_code in _TRANSIENT:
                return f"the hub answers {response.status_code}", _pause(response.headers)
            if response.is_error:
                try:
                    hf_raise_for_status(response)
                except Exception as error:
                    raise UserError(download_error(name, error)) from error
            if response.status_code != 206 and wanted != self._remote.sizes[file]:
                raise UserError(
                    f"{name}: {self._remote.origin} does not serve parts of files; convert without "
                    "--stream"
                )
            for piece in response.iter_bytes():
                if self._stopped.is_set():
                    return "stopped", None
                data += piece[:wanted]
                wanted -= len(piece)
                if wanted <= 0:
                    break
        return "the connection broke off", None


def _pause(headers: Mapping[str, str]) -> float | None:
    """The seconds of a Retry-After header; None without one that is a number."""
    try:
        return max(0.0, float(headers.get("retry-after", "")))
    except ValueError:
        return None
