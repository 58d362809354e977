"""The training loop."""

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

from llavacot_mlx.checkpoint.adapters import AdapterConfig, save_adapter
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.train.checkpoint import Checkpoint, save_checkpoint
from llavacot_mlx.train.distributed import Workers
from llavacot_mlx.train.events import Event, Saved, Stepped, Validating, Warned
from llavacot_mlx.train.loss.cross_entropy import LossSums
from llavacot_mlx.train.loss.inputs_loader import InputsLoader
from llavacot_mlx.train.loss.loss_and_grad import loss_and_gradients
from llavacot_mlx.train.settings import TrainSettings
from llavacot_mlx.train.validation import Validation

_NO_GRADIENT = 1e-9
"""A norm up to which nothing is learned; even a model that knows its rows by heart has more."""
_STILL_STEPS = 5


@dataclass
class Training:
    """A training in progress. Call `run` once."""

    model: Mllama
    optimizer: Any
    settings: TrainSettings
    steps: int
    """Total number of steps."""
    inputs: InputsLoader
    validation: Validation | None
    adapter: AdapterConfig
    origin: dict[str, Any]
    """What each step depends on; a resumption compares it."""
    workers: Workers
    done: int = 0
    """Number of steps done."""
    stopping: bool = field(default=False, init=False)
    """Set from outside to stop after the current step."""

    def run(self) -> Iterator[Event]:
        """Trains to the last step. When it yields Saved, the adapter and a checkpoint are on disk.

        Raises UserError when the loss or a gradient is NaN or infinite; the last checkpoint is then
        left as it was.
        """
        saved = self.done
        still, warned = 0, False
        with self.inputs.batches(self.model, self.settings, self.done, self.workers) as batches:
            while self.done < self.steps and not self.stopping:
                stepped = self._step(batches)
                self.done = stepped.step
                yield stepped
                still = still + 1 if stepped.grad_norm <= _NO_GRADIENT else 0
                if still == _STILL_STEPS and not warned:
                    warned = True
                    yield Warned(
                        f"the gradient has been 0 for {still} steps, since step "
                        f"{self.done - still + 1}: nothing is learned any more. The learning rate "
                        "is probably too high: start again with a lower --learning-rate"
                    )
                if self._is_time_for(self.settings.steps_per_eval) and self.validation:
                    yield Validating(self.done)
                    yield self.validation.evaluate(
                        self.model, self.settings, self.done, self.workers
                    )
                if self._is_time_for(self.settings.save_every):
                    yield self._save()
                    saved = self.done
        if saved < self.done:
            yield self._save()

    def _is_time_for(self, every: int) -> bool:
        return self.done % every == 0 or self.done == self.steps

    def resume(self, checkpoint: Checkpoint) -> None:
        """Restores the weights, the optimizer state and the step from a checkpoint."""
        self.model.load_weights(list(checkpoint.weights.items()), strict=False)
        self.optimizer.state = tree_unflatten(list(checkpoint.optimizer.items()))
        self.done = checkpoint.step

    def _step(self, batches: Iterator[Any]) -> Stepped:
        started = time.perf_counter()
        mx.reset_peak_memory()
        sums, gradients = self._gradients(batches)
        tokens = float(sums.tokens)
        gradients = tree_map(lambda gradient: gradient / tokens, gradients)
        gradients, norm = optimizers.clip_grad_norm(
            gradients, self.settings.max_grad_norm or math.inf
        )
        loss, grad_norm = float(sums.loss) / tokens, float(norm)
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
            learned_tokens=int(tokens),
            learning_rate=float(self.optimizer.learning_rate),  # set by the update
            grad_norm=grad_norm,
            seconds=time.perf_counter() - started,
            peak_memory_bytes=mx.get_peak_memory(),
        )

    def _gradients(self, batches: Iterator[Any]) -> tuple[LossSums, Any]:
        """The summed loss of all batches of a step and of all workers, and its gradients."""
        sums, gradients = LossSums.zero(), None
        for batch in range(self.settings.grad_accumulation_steps):
            inputs = next(batches)
            if inputs is None:  # fewer rows than workers
                continue
            batch_sums, batch_gradients = loss_and_gradients(
                self.model, inputs, self.settings.grad_checkpoint, self._dropout_key(batch)
            )
            sums = sums + batch_sums
            if gradients is None:
                gradients = batch_gradients
            else:
                gradients = tree_map(mx.add, gradients, batch_gradients)
            mx.eval(gradients, sums.arrays)  # otherwise all batches of the step would be in memory
        if gradients is None:
            gradients = tree_map(mx.zeros_like, self.model.trainable_parameters())
        total = self.workers.all_sum({"sums": sums.arrays, "gradients": gradients})
        mx.eval(total)
        return LossSums(*total["sums"]), total["gradients"]

    def _dropout_key(self, batch: int) -> mx.array | None:
        """A function of seed, step, batch and rank alone, so that a resumed run draws the same."""
        if not self.settings.lora_parameters.dropout:
            return None
        identity = f"{self.settings.seed} {self.done} {batch} {self.workers.rank}"
        return mx.random.key(int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8]))

    def _save(self) -> Saved:
        folder = Path(self.settings.adapter_path)
        if self.workers.is_main:
            weights = dict(tree_flatten(self.model.trainable_parameters()))
            state = dict(tree_flatten(self.optimizer.state))
            save_checkpoint(folder, Checkpoint(self.done, weights, state, self.origin))
            save_adapter(folder, weights, self.adapter)
        return Saved(self.done, folder)
