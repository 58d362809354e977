"""Reads generated token ids as an answer: ids become text, and text becomes stages."""

from __future__ import annotations

from collections.abc import Sequence

from llavacot_mlx.prompt.stages import (
    Stage,
    StageEvent,
    StageParser,
    StageRecord,
    StageRecorder,
)
from llavacot_mlx.prompt.tokenizer import Tokenizer


class StageReader:
    """Reads the tokens of one path while they are generated."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.token_ids: list[int] = []
        self.text = ""
        """The text that is certain so far, with tags and without the end-of-turn token."""
        self.records: list[StageRecord] = []
        """The stages that have ended."""
        self.turn_ended = False
        self._stop_ids = tokenizer.stop_ids
        self._decoder = tokenizer.stream()
        self._parser = StageParser()
        self._recorder = StageRecorder()
        self._recorded_tokens = 0  # tokens that belong to the stages that ended

    @classmethod
    def after(cls, tokenizer: Tokenizer, token_ids: Sequence[int]) -> StageReader:
        """Makes a reader that has read `token_ids` already."""
        reader = cls(tokenizer)
        for token_id in token_ids:
            reader.push(token_id)
        return reader

    @property
    def next_stage(self) -> Stage | None:
        """The stage that is open, or that should come next; None after the last."""
        if self._parser.stage is not None:
            return self._parser.stage
        return self.records[-1].stage.following if self.records else Stage.SUMMARY

    @property
    def open_stage(self) -> Stage | None:
        """The stage that is open now."""
        return self._parser.stage

    @property
    def open_text(self) -> str:
        """What there is of the open stage's text, without the white space around."""
        if self.open_stage is None:
            return ""
        return (self._recorder.text + self._parser.held).strip()

    def push(self, token_id: int) -> list[StageEvent]:
        """Reads a token, and returns the stage events that it made certain.

        Tokens after the end of the turn do not belong to the answer, and are ignored.
        """
        if self.turn_ended:
            return []
        self.token_ids.append(token_id)
        if token_id in self._stop_ids:
            self.turn_ended = True
            return []
        return self._read(self._decoder.push(token_id))

    def finish(self) -> list[StageEvent]:
        """Ends the text: returns what was held back, and the end of a stage that is still open."""
        return self._read(self._decoder.finish()) + self._record_stages(self._parser.finish())

    def _read(self, text: str) -> list[StageEvent]:
        self.text += text
        return self._record_stages(self._parser.feed(text))

    def _record_stages(self, events: list[StageEvent]) -> list[StageEvent]:
        for event in events:
            record = self._recorder.add(event, len(self.token_ids) - self._recorded_tokens)
            if record is not None:
                self.records.append(record)
                self._recorded_tokens = len(self.token_ids)
        return events
