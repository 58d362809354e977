"""What to do when the GPU did not do its work, by what it was doing."""

from __future__ import annotations

import enum

from llavacot_mlx.generate.gpu_errors import GPUError, gpu_error


class Work(enum.Enum):
    """What a command has the GPU do."""

    ANSWER = "answer"
    CALIBRATE = "calibrate"
    CONVERT = "convert"
    EVAL = "eval"
    TRAIN = "train"


_AGAIN = "close other programs that draw or compute, and run the same command again"
_SMALLER = {
    Work.ANSWER: "a smaller picture, fewer --candidates, --kv-bits 8, or a model of fewer bits",
    Work.CALIBRATE: "smaller pictures, a smaller --max-tokens, or a model of fewer bits",
    Work.CONVERT: f"{_AGAIN}: it goes on where it stopped",
    Work.EVAL: "a smaller --batch-size, --kv-bits 8, or a model of fewer bits",
    Work.TRAIN: "a smaller --batch-size, --max-seq-length or --num-layers, or --grad-checkpoint",
}
_SHORTER = {
    Work.ANSWER: "a smaller picture or fewer --candidates",
    Work.CALIBRATE: "smaller pictures",
    Work.CONVERT: f"{_AGAIN}: it goes on where it stopped",
    Work.EVAL: "a smaller --batch-size or fewer --candidates",
    Work.TRAIN: "a smaller --batch-size or --max-seq-length",
}
_FEWER = {
    Work.ANSWER: "fewer --candidates or a smaller --max-tokens",
    Work.CALIBRATE: "a smaller --max-tokens",
    Work.CONVERT: f"{_AGAIN}: it goes on where it stopped",
    Work.EVAL: "a smaller --batch-size or fewer --candidates",
    Work.TRAIN: "a smaller --batch-size, --max-seq-length or --num-layers",
}
_ADVICE = {
    GPUError.MEMORY: _SMALLER,
    GPUError.INTERACTIVITY: _SHORTER,
    GPUError.TIMEOUT: _SHORTER,
    GPUError.RESOURCES: _FEWER,
    GPUError.VICTIM: dict.fromkeys(Work, _AGAIN),
}


def gpu_line(error: BaseException, work: Work, *, smaller: str | None = None) -> str | None:
    """One line about a GPU error, with what to try; None for any other exception.

    `smaller` is better advice for lack of memory, where the caller has some.
    """
    meaning = gpu_error(error)
    if meaning is None:
        return None
    advice = smaller if smaller and meaning is GPUError.MEMORY else _ADVICE[meaning][work]
    return f"{meaning.value}; {'' if advice.startswith('close') else 'try '}{advice}"
