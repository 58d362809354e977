"""Trains the demo model's byte-level BPE tokenizer on the little world's own texts.

It has the layout of Llama 3.2's: the same split of text into words, the special tokens after the
words, and `<|image|>` after the vocabulary that the model can generate. Stage tags are ordinary
text.

    python recipes/demo_model/tokenizer.py OUT
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

from llavacot_mlx.demo.world import TRAIN, judge_question, questions, scene

BOS, EOT = "<|begin_of_text|>", "<|eot_id|>"
END, EOM, PAD = "<|end_of_text|>", "<|eom_id|>", "<|finetune_right_pad_id|>"
IMAGE = "<|image|>"
HEADER, HEADER_END = "<|start_header_id|>", "<|end_header_id|>"
SPECIALS = (BOS, END, PAD, HEADER, HEADER_END, EOM, EOT, "<|python_tag|>")
WORDS = 720  # at most: bytes and merges; the special tokens come on top
ROUND = 64  # the vocabulary is filled up with reserved tokens to a multiple of this
# Words as Llama 3 splits them: contractions, letters with one leading sign or space, up to three
# digits, runs of punctuation with the line ends after them, line ends, spaces.
WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{{- '<|image|>' if part['type'] == 'image' else part['text'] -}}
{%- endfor -%}
{%- endif -%}
{{- '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""


def corpus(scenes: int) -> Iterator[str]:
    """Yields the texts of users, assistant and judges about the first `scenes` training scenes."""
    for index in range(scenes):
        seed = TRAIN.seed(index)
        world, rng = scene(seed), random.Random(f"tokenizer {seed}")
        for question in questions(world, rng):
            judged = judge_question(world, question, rng)
            yield from (question.text, question.reply(), judged.text, judged.answer)
            yield from ("user", "assistant", "system", "\n\n")


def train_tokenizer(scenes: int = 3000) -> Tokenizer:
    """Trains the tokenizer; the same texts always give the same one."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=WORDS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus(scenes), trainer)
    words = tokenizer.get_vocab_size()
    reserved = -(words + len(SPECIALS)) % ROUND
    specials = [*SPECIALS, *(f"<|reserved_special_token_{n}|>" for n in range(reserved)), IMAGE]
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False, special=True) for text in specials]
    )
    begin = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, begin)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes tokenizer.json and the settings that transformers needs with it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOT,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 4096,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    tokenizer = train_tokenizer()
    save_tokenizer(tokenizer, arguments.out)
    print(f"{tokenizer.get_vocab_size()} tokens in {arguments.out}")


if __name__ == "__main__":
    main()
