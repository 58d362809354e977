"""Trains the demo model from scratch: first the vision tower on cells, then all of it.

    python recipes/demo_model/train.py pictures RUN --steps 800
    python recipes/demo_model/train.py joint RUN --steps 9000 --decay 3500

RUN holds the tokenizer, a checkpoint for each phase and the curve (curve.jsonl). An interrupted
phase resumes from its checkpoint. The learning rate rises, stays, and falls linearly to zero over
the last `--decay` steps; until the decay begins, `--steps` may change when a phase is resumed.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
from dataclasses import asdict, dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import forward
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from forward import PRODUCTS, Pictures, features, hidden_states
from greedy import held_out, pictures_of, score
from model import TEXT_WIDTH, new_model
from muon import Optimizer
from rows import CELL_HEADS, IGNORE, JUDGE_WEIGHT, TOKEN_CLASSES, Batch, prompt, training_batch
from tiles import check_against_transformers, normalized
from tokenizer import save_tokenizer, train_tokenizer
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import MllamaForConditionalGeneration

from llavacot_mlx.demo.world import VALIDATION, draw

SEED = 0
CELLS_WEIGHT = 0.5  # weight of the auxiliary loss
MISTAKES_WEIGHT = 0.5  # weight of the other auxiliary loss: which words of a text are wrong
CELL_WEIGHTS = {"kind": 3.0}  # the last thing to be learned: it takes several patches' outlines
WARMUP = 100  # steps
SAVE_EVERY = 240.0  # seconds
LOG_EVERY = 25  # steps


@dataclass(frozen=True)
class Plan:
    """The settings of a phase."""

    phase: str  # "pictures" (the vision tower and the cells alone) or "joint"
    steps: int
    decay: int  # the last steps, over which the learning rate falls to zero
    parts: int  # that a step is cut into, taken by whichever process is free
    pictures: int  # a part
    rows_a_picture: int
    judged: float  # share of the rows that are judge questions, once they have begun
    judge_from: int  # the step from which there are judge questions
    muon_rate: float
    adam_rate: float
    evaluate_every: int  # steps; 0 for never
    evaluated: int  # questions

    def factor(self, step: int) -> float:
        """The factor of the learning rates at a step."""
        return min(1.0, (step + 1) / WARMUP, (self.steps - step) / max(1, self.decay))


def cell_losses(
    heads: nn.ModuleDict, seen: Tensor, batch: Batch
) -> tuple[Tensor, dict[str, float]]:
    """The mean cross-entropy of the cells' contents, and each head's accuracy."""
    total, shares = torch.zeros(()), {}
    for name in CELL_HEADS:
        target = torch.from_numpy(batch.cells[name])
        asked = target != IGNORE
        logits = heads[name](seen[asked])
        loss = F.cross_entropy(logits, target[asked])
        total = total + CELL_WEIGHTS.get(name, 1.0) * loss
        shares[f"cell {name}"] = (logits.argmax(-1) == target[asked]).float().mean().item()
        shares[f"cell loss {name}"] = loss.item()
    return total / len(CELL_HEADS), shares


def text_losses(
    model: MllamaForConditionalGeneration,
    head: nn.Module,
    seen: Tensor,
    tile_mask: Tensor,
    batch: Batch,
) -> tuple[Tensor, dict[str, float]]:
    """The weighted mean cross-entropy of the tokens with a loss, and the mean by class of token."""
    token_ids, classes = torch.from_numpy(batch.token_ids), torch.from_numpy(batch.classes)
    shared = len(token_ids) // len(seen)
    mask = tile_mask.repeat_interleave(shared, dim=0)
    hidden = hidden_states(model, token_ids, seen, mask)
    mistakes, by_class = mistakes_loss(head, hidden, torch.from_numpy(batch.true))
    hidden = hidden[:, :-1]
    target, kinds = token_ids[:, 1:], classes[:, 1:]
    learned = kinds != 0
    logits = hidden[learned].to(PRODUCTS) @ model.lm_head.weight.to(PRODUCTS).T
    losses = F.cross_entropy(logits.float(), target[learned], reduction="none")
    kinds = kinds[learned]
    weights = torch.where(kinds == TOKEN_CLASSES.index("judge"), JUDGE_WEIGHT, 1.0)
    total = (losses * weights).sum() / weights.sum()
    values = losses.detach()
    by_class |= {
        name: values[kinds == number].mean().item()
        for number, name in enumerate(TOKEN_CLASSES)
        if (kinds == number).any()
    }
    return total + MISTAKES_WEIGHT * mistakes, by_class


def mistakes_loss(
    head: nn.Module, hidden: Tensor, target: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """The loss of finding the wrong words in a text with planted mistakes.

    One yes or no at the end of a row teaches little. A judge has to notice a word that contradicts
    the picture or the text before it.
    """
    asked = target != IGNORE
    if not asked.any():
        return torch.zeros(()), {}
    logits = head(hidden[asked])
    loss = F.cross_entropy(logits, target[asked])
    right = (logits.argmax(-1) == target[asked]).float()
    wrong_ones = target[asked] == 0
    figures = {"mistakes": loss.item()}
    if not wrong_ones.all():
        figures["false alarms"] = 1 - right[~wrong_ones].mean().item()
    if wrong_ones.any():
        figures["mistakes found"] = right[wrong_ones].mean().item()
    return loss, figures


@dataclass(frozen=True)
class Learner:
    """The weights in training, and the code that turns a part of a step into their gradient."""

    model: MllamaForConditionalGeneration
    heads: nn.ModuleDict
    tokenizer: Tokenizer
    plan: Plan

    def gradient(self, step: int, part: int) -> dict[str, float]:
        """Adds a part's gradient to the weights' `grad`; returns the losses and shares to log."""
        plan = self.plan
        judged = plan.judged if step >= plan.judge_from else 0.0
        batch = training_batch(
            self.tokenizer, step, part, plan.pictures, plan.parts, plan.rows_a_picture, judged
        )
        tile_mask = torch.from_numpy(batch.tile_mask).long()
        pictures = Pictures(
            tiles=torch.from_numpy(normalized(batch.tiles, batch.tile_mask)),
            ratio_ids=torch.from_numpy(batch.ratio_ids),
            tile_mask=tile_mask,
        )
        seen = features(self.model, pictures)
        loss, figures = cell_losses(self.heads, seen, batch)
        figures["cells"] = loss.item()
        if plan.phase == "joint":
            text, by_class = text_losses(self.model, self.heads["true"], seen, tile_mask, batch)
            figures |= by_class
            figures["text"] = text.item()
            loss = text + CELLS_WEIGHT * loss
        (loss / plan.parts).backward()
        return figures

    def parameters(self) -> list[nn.Parameter]:
        return [*self.model.parameters(), *self.heads.parameters()]


def new_learner(tokenizer_file: Path, plan: Plan) -> Learner:
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    model = new_model(tokenizer, SEED)
    heads = nn.ModuleDict({name: nn.Linear(TEXT_WIDTH, n) for name, n in CELL_HEADS.items()})
    heads["true"] = nn.Linear(TEXT_WIDTH, 2)
    return Learner(model.train(), heads, tokenizer, plan)


class Helper:
    """A second process that works on the same weights; each process has one thread.

    A step's parts are taken one by one by whichever process is free, so that a core that other
    programs also use slows a step down by no more than its share; two threads over every
    operation would each time wait for the slower one.
    """

    def __init__(self, learner: Learner, tokenizer_file: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._weights = learner.parameters()
        for weight in self._weights:
            weight.data.share_memory_()
        self._gradients = [torch.zeros_like(weight).share_memory_() for weight in self._weights]
        self._taken = context.Value("i", 0)
        self._steps, self._done = context.Queue(), context.Queue()
        context.Process(
            target=_help,
            args=(
                *(learner.plan, tokenizer_file, [weight.data for weight in self._weights]),
                *(self._gradients, self._taken, self._steps, self._done),
            ),
            daemon=True,
        ).start()

    def step(self, learner: Learner, number: int) -> list[dict[str, float]]:
        """Computes both processes' gradients of a whole step, in the weights' `grad`."""
        self._taken.value = 0
        self._steps.put(number)
        figures = _work(learner, number, self._taken)
        theirs = self._done.get()
        if theirs:
            for weight, gradient in zip(self._weights, self._gradients, strict=True):
                if weight.grad is None:
                    weight.grad = gradient.clone()
                else:
                    weight.grad.add_(gradient)
        return figures + theirs


def _work(learner: Learner, step: int, taken: Synchronized) -> list[dict[str, float]]:
    """Processes parts of the step until none is left."""
    figures = []
    while True:
        with taken.get_lock():
            part = taken.value
            taken.value += 1
        if part >= learner.plan.parts:
            return figures
        figures.append(learner.gradient(step, part))


def _help(
    plan: Plan,
    tokenizer_file: Path,
    weights: list[Tensor],
    gradients: list[Tensor],
    taken: Synchronized,
    steps: multiprocessing.Queue,
    done: multiprocessing.Queue,
) -> None:
    """The helper's loop: receives a step's number, adds to the shared gradient, sends figures."""
    torch.set_num_threads(1)
    learner = new_learner(tokenizer_file, plan)
    for parameter, weight in zip(learner.parameters(), weights, strict=True):
        parameter.data = weight
    forward.compile_blocks()
    while True:
        figures = _work(learner, steps.get(), taken)
        for parameter, gradient in zip(learner.parameters(), gradients, strict=True):
            if parameter.grad is None:
                gradient.zero_()
            else:
                gradient.copy_(parameter.grad)
                parameter.grad = None
        done.put(figures)


def run(plan: Plan, folder: Path, start_from: Path | None) -> None:
    """Trains a phase to its end, starting from its checkpoint if there is one."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer_file = folder / "tokenizer.json"
    if not tokenizer_file.is_file():
        save_tokenizer(train_tokenizer(), folder)
    learner = new_learner(tokenizer_file, plan)
    model, heads = learner.model, learner.heads
    trained = [model.model.vision_model, model.model.multi_modal_projector, heads]
    if plan.phase == "joint":
        trained = [model, heads]
    optimizer = Optimizer(trained, matrices_by_muon=plan.muon_rate > 0)
    checkpoint = folder / f"{plan.phase}.pt"
    step, seconds = 0, 0.0
    saved = None
    if checkpoint.is_file():
        saved = torch.load(checkpoint)
        optimizer.load_state_dict(saved["optimizer"])
        step, seconds = saved["step"], saved["seconds"]
    elif start_from is not None:
        saved = torch.load(start_from)
    if saved is not None:
        model.load_state_dict(saved["model"])
        heads.load_state_dict(saved["heads"])

    held = held_out(VALIDATION, plan.evaluated)
    _check(model, learner.tokenizer)
    forward.compile_blocks()
    helper = Helper(learner, tokenizer_file)
    log = (folder / "curve.jsonl").open("a", buffering=1)
    log.write(json.dumps({"plan": asdict(plan), "from step": step}) + "\n")
    began, last_saved = time.monotonic() - seconds, time.monotonic()
    sums: dict[str, list[float]] = {}
    while step < plan.steps:
        for figures in helper.step(learner, step):
            for name, value in figures.items():
                sums.setdefault(name, []).append(value)
        factor = plan.factor(step)
        length = optimizer.step(factor * plan.muon_rate, factor * plan.adam_rate)
        sums.setdefault("gradient", []).append(length)
        step += 1
        now = time.monotonic()
        if step % LOG_EVERY == 0 or step == plan.steps:
            means = {name: round(sum(v) / len(v), 5) for name, v in sums.items()}
            entry = {"phase": plan.phase, "step": step, "seconds": round(now - began, 1)}
            log.write(json.dumps(entry | {"rate factor": round(factor, 4)} | means) + "\n")
            sums = {}
        if now - last_saved > SAVE_EVERY or step == plan.steps:
            _save(checkpoint, model, heads, optimizer, step, now - began)
            last_saved = now
        if plan.evaluate_every and (step % plan.evaluate_every == 0 or step == plan.steps):
            torch.set_num_threads(2)
            model.eval()
            shares = score(model, learner.tokenizer, held, batch=100)
            model.train()
            torch.set_num_threads(1)
            began += time.monotonic() - now  # evaluation is not training time
            shares = {name: round(share, 4) for name, share in shares.items()}
            log.write(json.dumps({"phase": plan.phase, "evaluated": step} | shares) + "\n")
    log.close()


def _check(model: MllamaForConditionalGeneration, tokenizer: Tokenizer) -> None:
    """Compares our tiles and our forward pass with transformers', before training begins."""
    asked = held_out(VALIDATION, 16)
    check_against_transformers([draw(one.scene) for one in asked])
    texts = [prompt(one.question.text) + one.question.reply() for one in asked]
    rows = [tokenizer.encode(text, add_special_tokens=False).ids[:64] for text in texts]
    difference = forward.difference(
        model, pictures_of([one.scene for one in asked]), torch.tensor(np.array(rows))
    )
    assert difference < 0.15, f"the forward pass differs from transformers' by {difference}"


def _save(
    path: Path,
    model: nn.Module,
    heads: nn.Module,
    optimizer: Optimizer,
    step: int,
    seconds: float,
) -> None:
    """Writes the file atomically."""
    state = {
        "model": model.state_dict(),
        "heads": heads.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "seconds": seconds,
    }
    unfinished = path.with_suffix(".unfinished")
    torch.save(state, unfinished)
    unfinished.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("phase", choices=("pictures", "joint"))
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--decay", type=int, default=0)
    parser.add_argument("--judge-from", type=int, default=300)
    parser.add_argument("--judged", type=float, default=0.2, help="share of the rows")
    parser.add_argument("--evaluate-every", type=int, default=500)
    parser.add_argument("--muon-rate", type=float, default=1e-3, help="0: AdamW for all")
    parser.add_argument("--adam-rate", type=float, default=7e-4)
    arguments = parser.parse_args()
    joint = arguments.phase == "joint"
    plan = Plan(
        phase=arguments.phase,
        steps=arguments.steps,
        decay=arguments.decay,
        parts=4,
        pictures=4 if joint else 8,
        rows_a_picture=3 if joint else 0,
        judged=arguments.judged if joint else 0.0,
        judge_from=arguments.judge_from,
        muon_rate=arguments.muon_rate,
        adam_rate=arguments.adam_rate,
        evaluate_every=arguments.evaluate_every if joint else 0,
        evaluated=200,
    )
    if not math.isfinite(plan.adam_rate) or plan.steps < plan.decay:
        parser.error("--steps must be at least --decay")
    pictures = arguments.run / "pictures.pt"
    run(plan, arguments.run, pictures if joint and pictures.is_file() else None)


if __name__ == "__main__":
    main()
