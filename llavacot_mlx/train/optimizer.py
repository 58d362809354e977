"""MLX's optimizers and learning rate schedules by name."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.optimizers as optimizers

from llavacot_mlx.checked import brief
from llavacot_mlx.errors import UserError
from llavacot_mlx.train.settings import LRSchedule, TrainSettings

_CLASSES: dict[str, Any] = {
    "adam": optimizers.Adam,
    "adamw": optimizers.AdamW,
    "muon": optimizers.Muon,
    "sgd": optimizers.SGD,
    "adafactor": optimizers.Adafactor,
}


def optimizer_of(settings: TrainSettings) -> Any:
    """The optimizer of a training.

    Raises UserError for an option that MLX's class rejects, or that it takes and cannot use: its
    first update would fail, long after.
    """
    rate = _schedule(settings.lr_schedule) if settings.lr_schedule else settings.learning_rate
    given = settings.optimizer_config.get(settings.optimizer, {})
    try:
        optimizer = _CLASSES[settings.optimizer](learning_rate=rate, **given)
        weights = {"weight": mx.zeros((2, 2))}
        _CLASSES[settings.optimizer](learning_rate=rate, **given).apply_gradients(weights, weights)
        return optimizer
    except (TypeError, ValueError, OverflowError) as problem:
        raise UserError(f"optimizer_config.{settings.optimizer}: {brief(problem)}") from None


def _schedule(schedule: LRSchedule) -> Any:
    try:
        after = getattr(optimizers, schedule.name)(*schedule.arguments)
        if not schedule.warmup:
            return after
        rise = optimizers.linear_schedule(
            schedule.warmup_init, schedule.arguments[0], schedule.warmup
        )
        return optimizers.join_schedules([rise, after], [schedule.warmup + 1])
    except (TypeError, ValueError, IndexError, ArithmeticError) as problem:
        raise UserError(f"lr_schedule.arguments of {schedule.name}: {brief(problem)}") from None
