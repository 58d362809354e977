"""A server with OpenAI's chat interface on this machine, which answers as a test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Say = Callable[[dict[str, Any], int], "str | tuple[int, dict[str, str], str]"]
"""From the request and its number to the reply, or to a status, headers and a body."""


@dataclass
class ChatServer:
    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    at_once: int = 0
    """The most requests that were open at the same time."""


@contextmanager
def chat_server(say: Say) -> Iterator[ChatServer]:
    lock = threading.Lock()
    running = 0

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal running
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                server.requests.append(body)
                server.keys.append(self.headers["Authorization"])
                number = len(server.requests)
                running += 1
                server.at_once = max(server.at_once, running)
            found = say(body, number)
            with lock:
                running -= 1
            if isinstance(found, str):
                value = {"choices": [{"message": {"role": "assistant", "content": found}}]}
                found = (200, {}, json.dumps(value))
            status, headers, text = found
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = ChatServer(f"http://127.0.0.1:{http.server_port}/v1")
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
