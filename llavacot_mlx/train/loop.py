"""Training, step by step."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optimizers
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from llavacot_mlx.adapters import AdapterConfig, save_adapter
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.mllama import Mllama

from .checkpoint import Checkpoint, save_checkpoint
from .events import Event, Saved, Stepped, Validating
from .forward import loss_and_gradients
from .head import Sums
from .rows import Rows
from .settings import TrainSettings
from .validation import Validation
from .workers import Workers


@dataclass
class Training:
    """A training on its way. `run` is to be called once."""

    model: Mllama
    optimizer: Any
    settings: TrainSettings
    steps: int
    """How many it has in all."""
    rows: Rows
    validation: Validation | None
    adapter: AdapterConfig
    origin: dict[str, Any]
    """What it was begun with, for a resumption to compare."""
    workers: Workers
    done: int = 0
    """Steps that are done."""
    stopping: bool = field(default=False, init=False)
    """Set from outside: the step that is being computed is the last one."""

    def run(self) -> Iterator[Event]:
        """Trains to the last step. What was reached is on disk whenever Saved is yielded.

        Raises UserError when the loss or a gradient is no number any more; the last checkpoint is
        then as it was.
        """
        saved = self.done
        with self.rows.batches(self.model, self.settings, self.done, self.workers) as batches:
            while self.done < self.steps and not self.stopping:
                stepped = self._step(batches)
                self.done = stepped.step
                yield stepped
                if self._is_time_for(self.settings.steps_per_eval) and self.validation:
                    yield Validating(self.done)
                    yield self.validation.look(self.model, self.settings, self.done, self.workers)
                if self._is_time_for(self.settings.save_every):
                    yield self._save()
                    saved = self.done
        if saved < self.done:
            yield self._save()

    def _is_time_for(self, every: int) -> bool:
        return self.done % every == 0 or self.done == self.steps

    def resume(self, checkpoint: Checkpoint) -> None:
        """Goes on where a checkpoint stands; all that a step depends on comes from it."""
        self.model.load_weights(list(checkpoint.weights.items()), strict=False)
        self.optimizer.state = tree_unflatten(list(checkpoint.optimizer.items()))
        self.done = checkpoint.step

    def _step(self, batches: Iterator[Any]) -> Stepped:
        started = time.perf_counter()
        mx.reset_peak_memory()
        sums, gradients = self._gradients(batches)
        learned = float(sums.learned)
        gradients = tree_map(lambda gradient: gradient / learned, gradients)
        gradients, norm = optimizers.clip_grad_norm(
            gradients, self.settings.max_grad_norm or math.inf
        )
        loss, grad_norm = float(sums.loss) / learned, float(norm)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise UserError(
                f"step {self.done + 1}: the loss is {loss} and the gradient's norm {grad_norm}; "
                "the last checkpoint is kept. Start again with a lower --learning-rate, or set "
                "--max-grad-norm 1"
            )
        self.optimizer.update(self.model, gradients)
        mx.eval(self.model.trainable_parameters(), self.optimizer.state)
        return Stepped(
            step=self.done + 1,
            loss=loss,
            learned_tokens=int(learned),
            learning_rate=float(self.optimizer.learning_rate),  # set by the update, for itself
            grad_norm=grad_norm,
            seconds=time.perf_counter() - started,
            peak_memory_bytes=mx.get_peak_memory(),
        )

    def _gradients(self, batches: Iterator[Any]) -> tuple[Sums, Any]:
        """Of the sum of losses over all batches of a step and all workers."""
        sums, gradients = Sums.zero(), None
        for batch in range(self.settings.grad_accumulation_steps):
            inputs = next(batches)
            if inputs is None:  # fewer rows than workers
                continue
            more, change = loss_and_gradients(
                self.model, inputs, self.settings.grad_checkpoint, self._dropout_key(batch)
            )
            sums = sums + more
            gradients = change if gradients is None else tree_map(mx.add, gradients, change)
            mx.eval(gradients, sums.arrays)  # or the batches of a step would be in memory together
        if gradients is None:
            gradients = tree_map(mx.zeros_like, self.model.trainable_parameters())
        total = self.workers.sum({"sums": sums.arrays, "gradients": gradients})
        mx.eval(total)
        return Sums(*total["sums"]), total["gradients"]

    def _dropout_key(self, batch: int) -> mx.array | None:
        """What dropout draws follows from a batch's place, so that a resumption draws the same."""
        if not self.settings.lora_parameters.dropout:
            return None
        place = f"{self.settings.seed} {self.done} {batch} {self.workers.rank}"
        return mx.random.key(int.from_bytes(hashlib.sha256(place.encode()).digest()[:8]))

    def _save(self) -> Saved:
        folder = Path(self.settings.adapter_path)
        if self.workers.leads:
            weights = dict(tree_flatten(self.model.trainable_parameters()))
            state = dict(tree_flatten(self.optimizer.state))
            save_checkpoint(folder, Checkpoint(self.done, weights, state, self.origin))
            save_adapter(folder, weights, self.adapter)
        return Saved(self.done, folder)
