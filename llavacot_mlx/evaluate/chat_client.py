"""Asks a server with OpenAI's chat interface, and waits where it is busy, slow or gone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from llavacot_mlx.errors import UserError

KEY_VARIABLE = "OPENAI_API_KEY"

_TIMEOUT = 60.0  # seconds for one reply
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
_TOO_MANY, _TIMED_OUT = 429, 408


class ChatClient:
    """A model behind an address such as `http://localhost:8000/v1`. Safe to use from threads."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        patience: float,
        timeout: float = _TIMEOUT,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`patience` is how many seconds a reply may take with all repetitions and pauses."""
        import httpx2

        self.name = f"{model} at {url}"
        self._url = f"{url.rstrip('/').removesuffix('/chat/completions')}/chat/completions"
        self._model, self._patience = model, patience
        self._sleep, self._clock = sleep, clock
        key = os.environ.get(KEY_VARIABLE, "").strip()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx2.Client(timeout=min(timeout, patience), headers=headers)

    def reply(self, prompt: str, temperature: float, max_tokens: int) -> str:
        """Returns the reply to a prompt.

        Waits and asks again where the server is busy or does not answer, as long as it asks for in
        `Retry-After`. Raises UserError when the patience is at its end, and for a server that
        refuses or is no such server.
        """
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": temperature,
            "max_tokens": max_tokens,
        }
        deadline = self._clock() + self._patience
        pause = _FIRST_PAUSE
        while True:
            problem, wait = self._try(body)
            if wait is None:
                return problem
            wait = max(wait, pause)
            if self._clock() + wait > deadline:
                raise UserError(
                    f"{self._url}: {problem} for {self._patience:.0f} s; the replies so far are "
                    "kept, and the same command goes on behind them"
                )
            self._sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _try(self, body: dict[str, Any]) -> tuple[str, float | None]:
        """The reply and None, or what is wrong and how many seconds to wait at least."""
        import httpx2

        try:
            response = self._client.post(self._url, json=body)
        except httpx2.TimeoutException:
            return "no answer", 0.0
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as problem:
            raise UserError(f"{self._url}: {problem}") from None
        except httpx2.HTTPError as problem:
            return f"no connection ({_one_line(problem)})", 0.0
        status = response.status_code
        if status in (_TOO_MANY, _TIMED_OUT) or status >= 500:
            return f"HTTP {status}", _retry_after(response.headers.get("Retry-After"))
        if status != 200:
            raise UserError(f"{self._url}: HTTP {status}: {_one_line(response.text)}")
        try:
            content = response.json()["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            content = None
        if not isinstance(content, str):
            raise UserError(
                f"{self._url}: does not answer as OpenAI's chat interface does: "
                f"{_one_line(response.text)}"
            )
        return content, None


def _retry_after(value: str | None) -> float:
    try:
        return max(0.0, float(value or 0))
    except ValueError:  # a date
        return 0.0


def _one_line(text: object) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= 120 else f"{line[:120]}…"
