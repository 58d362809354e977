"""A Hugging Face hub with one model in it, on a port of this machine."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_COMMIT = "0123456789abcdef0123456789abcdef01234567"


# Of a model that can be run.
CONFIG = {
    "image_token_index": 100,
    "model_type": "mllama",
    "text_config": {
        "cross_attention_layers": [0],
        "hidden_size": 48,
        "intermediate_size": 60,
        "max_position_embeddings": 500,
        "num_attention_heads": 6,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-4,
        "rope_theta": 700.0,
        "vocab_size": 100,
    },
    "vision_config": {
        "attention_heads": 3,
        "hidden_size": 24,
        "image_size": 28,
        "intermediate_layers_indices": [0],
        "intermediate_size": 40,
        "max_num_tiles": 2,
        "norm_eps": 1e-3,
        "num_channels": 3,
        "num_global_layers": 1,
        "num_hidden_layers": 2,
        "patch_size": 14,
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
    },
}


class FakeHub:
    """Serves `files` as the model `owner/name`; knows no other. Notes what was asked for."""

    def __init__(self, files: dict[str, bytes], *, pause: float = 0.0) -> None:
        self.files = files
        self.pause = pause
        """Seconds before each kilobyte of a file."""
        self.revisions = ["main", "v2"]
        self.commit = _COMMIT
        self.ranges = True
        """Whether parts of files are served."""
        self.longest: int | None = None
        """Bytes of a part after which the connection breaks off."""
        self.busy = 0
        """Requests for parts that are still to be answered with 503."""
        self.parts_served = 0
        """Bytes of files that were sent in parts."""
        self.downloaded: list[str] = []
        self.fetching = 0
        """Files that are being sent right now."""
        self.most_fetching = 0
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub._answer(self, body=True)

            def do_HEAD(self) -> None:
                hub._answer(self, body=False)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = urlsplit(request.path).path
        api, files = "/api/models/owner/name", "/owner/name/resolve/"
        revision = path.removeprefix(f"{api}/revision/").removeprefix(f"{api}/tree/")
        if path.startswith(api) and revision not in (api, *self.revisions, self.commit):
            code = {"X-Error-Code": "RevisionNotFound"}
            self._send(request, 404, b"{}", code, body=body)
            return
        if path.startswith(f"{api}/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": _digest(data)}
                for name, data in self.files.items()
            ]
            self._send(request, 200, json.dumps(tree).encode(), {}, body=body)
            return
        if path == api or path.startswith(f"{api}/revision/"):
            siblings = [{"rfilename": name, "size": len(data)} for name, data in self.files.items()]
            record = {"id": "owner/name", "sha": self.commit, "siblings": siblings}
            self._send(request, 200, json.dumps(record).encode(), {}, body=body)
            return
        name = path.removeprefix(files).partition("/")[2] if path.startswith(files) else ""
        if name in self.files:
            data = self.files[name]
            headers = {"ETag": f'"{_digest(data)}"', "X-Repo-Commit": self.commit}
            part = request.headers.get("Range")
            if body and self.ranges and part:
                self._send_part(request, data, part)
                return
            if body:
                self.downloaded.append(name)
                self.fetching += 1
                self.most_fetching = max(self.most_fetching, self.fetching)
            self._send(request, 200, data, headers, body=body)
            self.fetching -= body
            return
        self._send(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)

    def _send_part(self, request: BaseHTTPRequestHandler, data: bytes, part: str) -> None:
        if self.busy:
            self.busy -= 1
            self._send(request, 503, b"", {"Retry-After": "0"}, body=True)
            return
        first, last = map(int, part.removeprefix("bytes=").split("-"))
        wanted = data[first : last + 1]
        request.send_response(206)
        request.send_header("Content-Length", str(len(wanted)))
        request.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        request.end_headers()
        sent = wanted if self.longest is None else wanted[: self.longest]
        with contextlib.suppress(OSError):
            for start in range(0, len(sent), 65536):
                time.sleep(self.pause)
                request.wfile.write(sent[start : start + 65536])
                self.parts_served += len(sent[start : start + 65536])
        if len(sent) < len(wanted):
            request.close_connection = True

    def _send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        data: bytes,
        headers: dict[str, str],
        *,
        body: bool,
    ) -> None:
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            request.send_header(name, value)
        request.end_headers()
        if not body:
            return
        try:
            for start in range(0, len(data), 1024):
                time.sleep(self.pause)
                request.wfile.write(data[start : start + 1024])
        except OSError:
            pass  # the client hung up


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
