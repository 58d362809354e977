"""A Hugging Face hub with one model in it, on a port of this machine."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves `files` as the model `owner/name`; knows no other. Notes what was asked for."""

    def __init__(self, files: dict[str, bytes], *, pause: float = 0.0) -> None:
        self.files = files
        self.pause = pause
        """Seconds before each kilobyte of a file."""
        self.downloaded: list[str] = []
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
        if path == api or path.startswith(f"{api}/revision/"):
            siblings = [{"rfilename": name, "size": len(data)} for name, data in self.files.items()]
            record = {"id": "owner/name", "sha": _COMMIT, "siblings": siblings}
            self._send(request, 200, json.dumps(record).encode(), {}, body=body)
            return
        name = path.removeprefix(files).partition("/")[2] if path.startswith(files) else ""
        if name in self.files:
            data = self.files[name]
            headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": _COMMIT}
            if body:
                self.downloaded.append(name)
            self._send(request, 200, data, headers, body=body)
            return
        self._send(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)

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
