"""Which keys of `config.json` have no effect on what the model computes.

Trainers, converters and versions of transformers add keys of their own, more than a list can hold.
A key without a meaning here passes when it

- is null, false, zero or empty, which switches off whatever it would do;
- is a factor or a number of parallel parts of one, which changes nothing;
- repeats a value of another section, as some trainers copy `hidden_size` to the top;
- is bookkeeping by its name: who made the file, with what, how it was trained or generates.

Every other key might change the computation, and is refused by whoever reads the file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from llavacot_mlx.checked import brief, shown
from llavacot_mlx.errors import UserError

# What transformers itself writes into every configuration, in some version: bookkeeping, training
# and generation settings, and switches of other kinds of models. mlx-vlm adds generation_config, a
# copy of that file, and once added skip_vision, which the tensors tell, too.
_WITHOUT_EFFECT = frozenset({
    "_attn_implementation_autoset", "_name_or_path", "add_cross_attention", "architectures",
    "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "chunk_size_feed_forward",
    "cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty", "do_sample",
    "dropout", "dtype", "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id",
    "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id",
    "forced_eos_token_id", "generation_config", "id2label", "initializer_range", "is_decoder",
    "is_encoder_decoder", "label2id", "length_penalty", "max_length", "min_length", "model_type",
    "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences",
    "output_attentions", "output_hidden_states", "output_scores", "pad_token_id", "prefix",
    "problem_type", "pruned_heads", "remove_invalid_values", "repetition_penalty",
    "return_dict", "return_dict_in_generate", "sep_token_id", "skip_vision", "suppress_tokens",
    "task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder",
    "tie_word_embeddings", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript",
    "transformers_version", "typical_p", "use_bfloat16", "use_cache",
})  # fmt: skip

# What an unknown key is about, by its words. These decide alone, whatever other words there are:
_DECISIVE = frozenset({
    "autoset", "checkpointing", "commit", "deprecated", "drop", "droppath", "dropout", "flash",
    "generation", "hash", "implementation", "init", "initializer", "layerdrop", "license", "loss",
    "sdpa", "seed", "unsloth",
})  # fmt: skip
# These, unless a word of an architecture stands beside them:
_BOOKKEEPING = frozenset({
    "author", "authors", "batch", "chat", "created", "creator", "dataset", "datasets", "date",
    "deepspeed", "description", "device", "epoch", "epochs", "eval", "finetune", "finetuned",
    "finetuning", "framework", "freeze", "frozen", "fsdp", "gradient", "hub", "ignore", "label",
    "labels", "language", "languages", "learning", "length", "library", "link", "logging", "lr",
    "merged", "name", "optim", "optimizer", "origin", "padding", "path", "penalty", "pipeline",
    "processor", "repo", "revision", "sampling", "save", "saved", "scheduler", "source",
    "sources", "steps", "tag", "tags", "task", "temperature", "template", "timestamp",
    "tokenizer", "train", "trained", "trainer", "training", "transformers", "truncation", "trust",
    "url", "uuid", "version", "wandb",
})  # fmt: skip
# Words of an architecture.
_ARCHITECTURE = frozenset({
    "absolute", "act", "activation", "aspect", "attend", "attention", "attn", "bias",
    "bidirectional", "block", "blocks", "cap", "capping", "causal", "channel", "channels",
    "conv", "cross", "depth", "dim", "dims", "embed", "embedding", "embeddings", "eps",
    "epsilon", "expert", "experts", "factor", "feature", "features", "feed", "ffn", "forward",
    "frequency", "gate", "gated", "gates", "gating", "geglu", "global", "glu", "group",
    "groups", "head", "heads", "hidden", "image", "indices", "inner", "interleave",
    "intermediate", "kernel", "key", "kv", "latent", "layer", "layernorm", "layers", "layout",
    "local", "logit", "logits", "mask", "mixer", "mlp", "moe", "multiplier", "norm",
    "normalization", "normalize", "parallel", "patch", "pooler", "pooling", "position",
    "positional", "positions", "post", "pre", "proj", "projection", "projector", "qk", "qkv",
    "query", "ratio", "ratios", "relative", "residual", "rms", "rope", "rotary", "router",
    "scale", "scaling", "shared", "sink", "sinks", "size", "sliding", "soft", "softcap",
    "softcapping", "softmax", "sparse", "state", "stride", "tanh", "theta", "tile", "tiles",
    "value", "video", "vision", "vocab", "vocabulary", "width", "window",
})  # fmt: skip
_MAX_KEYS = 1000  # of a section
# Of these, one is none.
_UNITS = ("factor", "multiplier", "scale", "scaling", "tp", "degree", "parallel_size", "ratio")


def without_effectless_keys(
    values: Mapping[str, Any], known: Mapping[str, Collection[str]]
) -> dict[str, Any]:
    """A copy of a configuration's JSON without the keys that have no effect.

    `known` are the keys that have a meaning, by section; the outermost section's name is empty.

    Raises UserError for a copy of another section's key whose value differs from it.
    """
    sections = {
        name: section
        for name in known
        if isinstance(section := values.get(name) if name else values, Mapping)
    }
    for name, section in sections.items():
        if len(section) > _MAX_KEYS:
            raise UserError(
                f"{name or 'it'}: has {len(section)} keys, and {_MAX_KEYS} are the most"
            )
    kept: dict[str, Any] = {}
    for name, section in sections.items():
        mine = {
            key: value
            for key, value in section.items()
            if key in known[name] or not _is_effectless(name, key, value, sections, known)
        }
        if name:
            kept[name] = mine
        else:
            kept = {**mine, **kept}
    return kept


def _is_effectless(
    section: str,
    key: str,
    value: Any,
    sections: Mapping[str, Mapping[str, Any]],
    known: Mapping[str, Collection[str]],
) -> bool:
    if _is_neutral(key, value) or key.startswith("_") or key in _WITHOUT_EFFECT:
        return True
    for other, there in sections.items():
        if other != section and key in known[other] and there.get(key) is not None:
            if there[key] == value:
                return True
            if not section:  # the top may say only what the section says
                raise UserError(
                    f"{brief(key)} is {shown(value)}, but {other}.{brief(key)} is "
                    f"{shown(there[key])}"
                )
    return _is_bookkeeping(key)


def _is_neutral(key: str, value: Any) -> bool:
    if value is None or value is False or value in ("", 0) or value in ([], {}):
        return True
    return type(value) in (int, float) and value == 1 and key.endswith(_UNITS)


def _is_bookkeeping(key: str) -> bool:
    words = set(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower().replace(".", "_").split("_"))
    if words & _DECISIVE:
        return True
    return bool(words & _BOOKKEEPING) and not words & _ARCHITECTURE
