"""Measures speculation against plain decoding: `python -m benchmarks.speculation`.

The demo model answers held-out questions with and without speculation, in turn, greedily and
sampled; the tokens must be the same. A random checkpoint, sampled, writes text without any
repetition, where speculation can only cost.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.checkpoint import write_checkpoint
from benchmarks.machine import machine
from llavacot_mlx.assistant import Assistant
from llavacot_mlx.demo import model_path
from llavacot_mlx.demo.world import TEST, draw, questions, scene
from llavacot_mlx.generate.ngram_draft import DraftMemory
from llavacot_mlx.request import AskOptions, Request, make_request

RESULTS = Path(__file__).parent / "results"


class Assistants:
    """One model twice, so that speculation does not remember what plain decoding just wrote."""

    def __init__(self, folder: Path) -> None:
        self.speculating = Assistant.load(folder, dtype="float32")
        self.plain = Assistant(replace(self.speculating._loaded, draft_memory=DraftMemory()))


@dataclass
class Comparison:
    """Sums over all questions; seconds of plain decoding and with speculation."""

    questions: int = 0
    tokens: int = 0
    passes: int = 0
    drafted: int = 0
    accepted: int = 0
    plain_decode_s: float = 0.0
    decode_s: float = 0.0
    plain_total_s: float = 0.0
    total_s: float = 0.0

    def ask(self, assistants: Assistants, request: Request) -> None:
        """Asks twice, in an order that alternates. Raises ValueError for different tokens."""
        pair = [
            (True, assistants.speculating, request),
            (False, assistants.plain, replace(request, speculation=False)),
        ]
        traces = {}
        for speculates, assistant, each in pair if self.questions % 2 else reversed(pair):
            traces[speculates] = assistant.stream(each).result()
        if traces[True].token_ids != traces[False].token_ids:
            raise ValueError(f"other tokens with speculation: {request.question}")
        usage = traces[True].usage
        self.questions += 1
        self.tokens += usage.decoded_tokens
        self.passes += usage.forward_passes
        self.drafted += usage.drafted_tokens
        self.accepted += usage.accepted_tokens
        self.plain_decode_s += traces[False].timings.decode_s
        self.decode_s += traces[True].timings.decode_s
        self.plain_total_s += traces[False].timings.total_s
        self.total_s += traces[True].timings.total_s

    def row(self, name: str) -> str:
        return (
            f"| {name} | {self.questions} | {self.tokens} | {self.passes / self.tokens:.2f} "
            f"| {self.accepted / max(1, self.drafted):.0%} of {self.drafted} "
            f"| {self.decode_s / self.plain_decode_s:.2f} "
            f"| {self.total_s / self.plain_total_s:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=200, help="questions for the demo model")
    parser.add_argument("--texts", type=int, default=8, help="texts of the random model")
    arguments = parser.parse_args()
    print("| | questions | tokens | passes per token | accepted | decoding | whole answer |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    result: dict[str, object] = {"machine": machine()}
    for name, temperature in {"greedy": 0.0, "sampled": 0.6}.items():
        result[name] = asdict(_demo(name, arguments.questions, temperature))
    result["no repetition"] = asdict(_without_repetition(arguments.texts))
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "speculation.json"
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written to {file}")


def _demo(name: str, count: int, temperature: float) -> Comparison:
    """Asks a freshly loaded demo model, which remembers its own answers as it goes."""
    assistants = Assistants(model_path())
    comparison = Comparison()
    for index in range(count):
        seed = TEST.seed(index)
        world = scene(seed)
        question = questions(world, random.Random(f"rows {seed}"))[0].text
        request = make_request(draw(world), question, temperature=temperature)
        comparison.ask(assistants, request)
    print(comparison.row(f"demo model, {name}"), flush=True)
    return comparison


def _without_repetition(count: int) -> Comparison:
    comparison = Comparison()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        write_checkpoint(folder, 2048)
        assistants = Assistants(folder)
        for seed in range(count):
            # At this temperature every token is about as likely.
            options: AskOptions = {"temperature": 100.0, "top_p": 1.0, "max_tokens": 128}
            comparison.ask(assistants, make_request(None, "Write.", seed=seed, **options))
    print(comparison.row("random model, sampled"), flush=True)
    return comparison


if __name__ == "__main__":
    main()
