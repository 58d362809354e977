"""Any vision-language model that mlx-vlm opens, as a judge."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from llavacot_mlx.checked import quoted, read_json
from llavacot_mlx.checkpoint.folder_files import files_in
from llavacot_mlx.checkpoint.hub import ENDINGS
from llavacot_mlx.errors import UserError
from llavacot_mlx.search.judges.base import Candidate, JudgeError
from llavacot_mlx.search.judges.prompts import yes_or_no_question
from llavacot_mlx.search.judges.yes_or_no import YesOrNo

_DATA = (*ENDINGS, ".model", ".tiktoken")
"""Endings of data files. mlx-vlm gets no Python files and no pickles."""


class VlmJudge:
    """Scores a stage by the probability of "yes" as the first token of the model's answer.

    Candidates are asked one after the other. The image's features are kept in between, where
    mlx-vlm supports that for the model.
    """

    def __init__(self, model: Any, processor: Any, folder: TemporaryDirectory[str]) -> None:
        from mlx_vlm.vision_cache import VisionFeatureCache

        self._model, self._processor = model, processor
        self._folder = folder  # some models read files again later
        self._tokenizer = getattr(processor, "tokenizer", processor)
        self._words = YesOrNo.of(
            lambda text: self._tokenizer.encode(text, add_special_tokens=False)
        )
        self._special_strings = _special_strings(processor, self._tokenizer)
        self._features = VisionFeatureCache(max_size=1)

    @classmethod
    def load(cls, folder: Path) -> VlmJudge:
        """Loads a model folder; reads only files of that folder, and runs no code from it.

        Raises UserError when mlx-vlm cannot open it.
        """
        import transformers
        from mlx_vlm import load

        transformers.logging.set_verbosity_error()  # its warnings would disturb the screen
        if not files_in(folder, ".safetensors"):
            raise UserError(f"{folder}: no *.safetensors in it; other weights are not read")
        data_only = TemporaryDirectory(prefix="llavacot-judge-")
        _link_data_files(folder, Path(data_only.name))
        try:
            with _no_logging():
                model, processor = load(data_only.name, trust_remote_code=False)
        except Exception as error:  # model code raises all kinds of errors
            reason = " ".join(str(error).replace(data_only.name, str(folder)).split())
            raise UserError(f"{folder}: mlx-vlm cannot open it: {reason:.200}") from error
        return cls(model, processor, data_only)

    def scores(
        self, image: Image.Image | None, question: str, candidates: Sequence[Candidate]
    ) -> list[float | None]:
        if image is not None and getattr(self._processor, "image_processor", None) is None:
            raise JudgeError("it is a model that cannot see images")
        return [
            self._yes_probability(
                image, yes_or_no_question(question, candidate.stage, candidate.judged_text)
            )
            for candidate in candidates
        ]

    def _yes_probability(self, image: Image.Image | None, text: str) -> float:
        from mlx_vlm import apply_chat_template, prepare_inputs, stream_generate

        images = [] if image is None else [image.convert("RGB")]
        prompt = apply_chat_template(
            self._processor,
            self._model.config,
            _break_special_strings(text, self._special_strings),
            num_images=len(images),
            enable_thinking=False,
        )
        begin = getattr(self._tokenizer, "bos_token", None)
        inputs = prepare_inputs(
            self._processor,
            images=images,
            prompts=prompt,
            image_token_index=getattr(self._model.config, "image_token_index", None),
            # the template has its own; mlx-vlm would add a second one
            add_special_tokens=begin is None or not prompt.startswith(begin),
        )
        inputs["mask"] = inputs.pop("attention_mask", None)
        answer = stream_generate(
            self._model,
            self._processor,
            prompt,
            image=images,
            max_tokens=1,
            temperature=0.0,
            vision_cache=self._features,
            **inputs,
        )
        with closing(answer):
            logprobs = next(answer).logprobs
        if logprobs is None:
            raise JudgeError("it does not tell how likely its words are")
        return self._words.yes_probabilities(logprobs.reshape(1, -1))[0]


@contextmanager
def _no_logging() -> Iterator[None]:
    """Silences the root logger, to which mlx-vlm logs what it also raises."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _link_data_files(source: Path, target: Path) -> None:
    """Links a model's data files into `target`, without the settings that name code to run.

    transformers would fetch and run the code that `auto_map` names, in some of mlx-vlm's processors
    regardless of its flags, and mlx-vlm runs the file that `model_file` names.
    """
    for file in files_in(source, *_DATA):
        copy = target / file.name
        if file.suffix != ".json" or file.name in ("tokenizer.json", "vocab.json"):
            copy.symlink_to(file.resolve())
            continue
        values = read_json(file, "")
        if file.name == "config.json" and "model_file" in values:
            raise UserError(f"{file}: its model_file is code, and no code of a model is run")
        if file.name.endswith(".index.json"):
            for shard in values.get("weight_map", {}).values():
                if Path(shard).name != shard:
                    raise UserError(f"{file}: {quoted(shard)} is not a file in this folder")
        copy.write_text(json.dumps(_without_code(values)), encoding="utf-8")


def _without_code(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _without_code(value) for key, value in values.items() if key != "auto_map"}
    return [_without_code(value) for value in values] if isinstance(values, list) else values


def _special_strings(processor: Any, tokenizer: Any) -> tuple[str, ...]:
    """Returns the strings that this model's tokenizer or processor treats as special."""
    added = {str(token) for token in tokenizer.get_added_vocab()}
    named = {
        getattr(owner, f"{kind}_token", None)
        for owner in (processor, tokenizer)
        for kind in ("image", "video", "audio")
    }
    known = {str(token) for token in named if token is not None}
    # Some of mlx-vlm's processors insert the last two for an image in any case.
    texts = {*added, *known, *tokenizer.all_special_tokens, "<image>", "<|placeholder|>"}
    # Runs of spaces, which some tokenizers add, are text; one character cannot be split.
    return tuple(sorted(text for text in texts if len(text.strip()) > 1))


def _break_special_strings(text: str, special_strings: Sequence[str]) -> str:
    """Inserts a space into each special string of a text.

    A chat template joins everything into one text, so the tokenizer would read them as special.
    """
    for special in special_strings:
        text = text.replace(special, f"{special[0]} {special[1:]}")
    return text
