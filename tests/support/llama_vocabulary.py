"""A stand-in for Llama 3.2's tokenizer, whose licence keeps the real one out of the repository.

A byte-level BPE with Llama 3's split of text into words, trained on this repository's LICENSE and
on `PIECES`, which make it cut the stage tags where the real one cuts them. Its ids are laid out as
the real one's: ordinary tokens, 256 special ones, `<|image|>`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

# How Llama 3 cuts text before byte pairs are merged.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{%- if message['content'] is string %}{{- message['content'] }}{%- else %}"
    "{%- for part in message['content'] %}"
    "{%- if part['type'] == 'image' %}{{- '<|image|>' }}"
    "{%- elif part['type'] == 'text' %}{{- part['text'] }}{%- endif %}"
    "{%- endfor %}{%- endif %}{{- '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
BOS = "<|begin_of_text|>"
# The first special tokens, in the order of their ids.
SPECIAL_TOKENS = (
    BOS,
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)
IMAGE_TOKEN = "<|image|>"

ORDINARY_TOKENS = 1100  # 256 bytes; the merges of PIECES, and English from LICENSE
SPECIAL_COUNT = 256
IMAGE_TOKEN_ID = ORDINARY_TOKENS + SPECIAL_COUNT
REAL_IMAGE_TOKEN_ID = 128256
# Pieces of tags and of what stands beside them. The real vocabulary has each of them as one token;
# the first are merged first. `<R`, `<SUM`, `<CAP`, `CONCL` must not come before what they cut.
PIECES = (
    *("CON", "RE", "<C", "<S", "UM", "AP", "MARY", "SUM", "CAP", "TION", "ING", "ASON", "CLUSION"),
    *("</", " </", "></", ".</", ",</", ":</", ";</", "!</", "?</", "?></", '"</', ")</", "><"),
    *(")\n", ")\n\n", ")."),
    *(" <", ".<", ",<", ":<", ";<", "!<", "?<", "?><", '"<', ")<", ">:", ">.", ">,", '>"', ">>"),
    *(">\n", ">\n\n", ">\n\n\n", ">\r\n", ".\n", ".\n\n", ",\n", ":\n", ":\n\n", "\n\n", "\n\n\n"),
    *(" \n", " \n\n", "\r\n", "  ", "   ", "\t\t", "'s", "'ll", "don", "user", "assistant"),
    *("system", "ü", " Ü", "这", "<R", ">a", " B", " picture", " image", " red"),
)


def real_folder() -> Path | None:
    """The real tokenizer: LLAVACOT_LLAMA_TOKENIZER, or its folder beside the repository."""
    if named := os.environ.get("LLAVACOT_LLAMA_TOKENIZER"):
        if not (Path(named) / "tokenizer.json").is_file():
            raise FileNotFoundError(f"LLAVACOT_LLAMA_TOKENIZER: no tokenizer.json in {named}")
        return Path(named)
    beside = Path(__file__).parents[3] / "shared" / "llama-3.2-vision-tokenizer"
    return beside if beside.is_dir() else None


def train(texts: Iterable[str], ordinary: int, special: Sequence[str]) -> Tokenizer:
    """A byte-level BPE of `ordinary` tokens, followed by the `special` ones in their order.

    The same texts always give the same tokenizer.
    """
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ordinary,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.get_vocab_size() == ordinary, tokenizer.get_vocab_size()
    tokenizer.add_special_tokens(list(special))
    template = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), template]
    )
    return tokenizer


def write_stand_in(folder: Path) -> Path:
    """Train the stand-in and write the files that the real folder has. Returns `folder`."""
    license_text = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
    # Each piece more often than the next, and all of them more often than any pair in LICENSE.
    pieces = [
        piece for index, piece in enumerate(reversed(PIECES)) for _ in range(1000 + 20 * index)
    ]
    reserved = SPECIAL_COUNT - len(SPECIAL_TOKENS)
    special = (*SPECIAL_TOKENS, *(f"<|reserved_special_token_{3 + n}|>" for n in range(reserved)))
    tokenizer = train([license_text, *pieces], ORDINARY_TOKENS, (*special, IMAGE_TOKEN))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": "<|eot_id|>",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    images = {"image_processor_type": "MllamaImageProcessor", "processor_class": "MllamaProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(images), encoding="utf-8")
    return folder


# Tests of Llama 3.2's tokenizer run with the stand-in, and with the real one where there is one.
LLAMA = ("stand-in", "real") if real_folder() else ("stand-in",)
