"""config.json in two spellings gives one configuration; what is missing or unknown is named."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

from llavacot_mlx.checkpoint.config_json import load_config, parse_config
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.config import Llama3Scaling, ModelConfig, Quantization

FILE = Path("somewhere/config.json")

# As transformers 5 writes it, in sizes that are nobody's.
NEW: dict[str, Any] = {
    "architectures": ["MllamaForConditionalGeneration"],
    "dtype": "float32",
    "image_token_index": 101,
    "model_type": "mllama",
    "text_config": {
        "bos_token_id": 1,
        "cross_attention_layers": [0, 3],
        "dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": 48,
        "initializer_range": 0.02,
        "intermediate_size": 90,
        "max_position_embeddings": 500,
        "model_type": "mllama_text_model",
        "num_attention_heads": 6,
        "num_hidden_layers": 5,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-4,
        "rope_parameters": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 64,
            "rope_theta": 700.0,
            "rope_type": "llama3",
        },
        "use_cache": True,
        "vocab_size": 100,
    },
    "tie_word_embeddings": False,
    "transformers_version": "5.23.0",
    "vision_config": {
        "attention_heads": 3,
        "hidden_act": "gelu",
        "hidden_size": 24,
        "image_size": 28,
        "intermediate_layers_indices": [2, 0],
        "intermediate_size": 40,
        "max_num_tiles": 2,
        "model_type": "mllama_vision_model",
        "norm_eps": 1e-3,
        "num_channels": 3,
        "num_global_layers": 2,
        "num_hidden_layers": 3,
        "patch_size": 14,
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        "vision_output_dim": 72,
    },
}
SCALING = Llama3Scaling(8.0, 1.0, 4.0, 64)


def changed(path: str, value: object, values: dict[str, Any] = NEW) -> dict[str, Any]:
    """A copy of `values` with the key at the dotted `path` set; deleted if `value` is `...`."""
    values = copy.deepcopy(values)
    *sections, key = path.split(".")
    section = values
    for name in sections:
        section = section[name]
    if value is ...:
        del section[key]
    else:
        section[key] = value
    return values


def old_spelling(values: dict[str, Any] = NEW) -> dict[str, Any]:
    """The same configuration as it was written before transformers 5."""
    values = copy.deepcopy(values)
    values["torch_dtype"] = values.pop("dtype")
    values["vision_config"]["num_attention_heads"] = values["vision_config"].pop("attention_heads")
    text = values["text_config"]
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope.pop("rope_theta")
    text["rope_scaling"] = rope if rope["rope_type"] == "llama3" else None
    return values


def message(values: object) -> str:
    """What the error about `values` says."""
    with pytest.raises(UserError) as caught:
        parse_config(values, FILE)
    said = str(caught.value)
    assert str(FILE) in said
    assert "\n" not in said
    return said


def test_every_value_is_read() -> None:
    config = parse_config(NEW, FILE)
    text, vision = config.text, config.vision
    assert (text.vocab_size, text.hidden_size, text.intermediate_size) == (100, 48, 90)
    assert (text.num_hidden_layers, text.cross_attention_layers) == (5, (0, 3))
    assert (text.num_attention_heads, text.num_key_value_heads, text.head_dim) == (6, 2, 8)
    assert (text.rms_norm_eps, text.max_position_embeddings) == (1e-4, 500)
    assert (text.rope_theta, text.rope_scaling) == (700.0, SCALING)
    assert (vision.hidden_size, vision.intermediate_size, vision.num_channels) == (24, 40, 3)
    assert (vision.num_hidden_layers, vision.num_global_layers) == (3, 2)
    assert (vision.num_attention_heads, vision.head_dim, vision.norm_eps) == (3, 8, 1e-3)
    assert (vision.image_size, vision.patch_size, vision.tokens_per_tile) == (28, 14, 5)
    assert (vision.max_num_tiles, vision.num_aspect_ratios) == (2, 3)
    assert (vision.intermediate_layers_indices, vision.output_size) == ((2, 0), 72)
    assert config.image_token_id == 101
    assert config.quantization is None


@pytest.mark.parametrize("scaled", [True, False])
def test_both_spellings_are_one_configuration(scaled: bool) -> None:
    default = {"rope_type": "default", "rope_theta": 700.0}
    new = NEW if scaled else changed("text_config.rope_parameters", default)
    old = old_spelling(new)
    assert parse_config(old, FILE) == parse_config(new, FILE)
    assert parse_config(new, FILE).text.rope_scaling == (SCALING if scaled else None)


def test_both_spellings_side_by_side() -> None:
    """A file may have both, as long as they agree."""
    both = old_spelling()
    both["vision_config"]["attention_heads"] = 3
    both["image_token_id"] = 101
    both["text_config"]["rope_parameters"] = NEW["text_config"]["rope_parameters"]
    assert parse_config(both, FILE) == parse_config(NEW, FILE)


NEEDED = [
    "image_token_index",
    "text_config",
    "vision_config",
    *(
        f"text_config.{key}"
        for key in (
            *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
            *("num_attention_heads", "num_key_value_heads", "rms_norm_eps"),
            *("cross_attention_layers", "max_position_embeddings", "rope_parameters"),
        )
    ),
    *(
        f"text_config.rope_parameters.{key}"
        for key in (
            *("rope_theta", "rope_type", "factor", "low_freq_factor", "high_freq_factor"),
            "original_max_position_embeddings",
        )
    ),
    *(
        f"vision_config.{key}"
        for key in (
            *("hidden_size", "intermediate_size", "num_hidden_layers", "num_global_layers"),
            *("attention_heads", "num_channels", "image_size", "patch_size", "max_num_tiles"),
            *("supported_aspect_ratios", "intermediate_layers_indices", "norm_eps"),
        )
    ),
]


@pytest.mark.parametrize("value", [..., None], ids=["absent", "null"])
@pytest.mark.parametrize("path", NEEDED)
def test_a_missing_key_is_named(path: str, value: object) -> None:
    """A default picked in silence gives fluent nonsense."""
    said = message(changed(path, value))
    assert "missing" in said
    assert path.rpartition(".")[2] in said


def test_the_list_of_needed_keys_is_whole() -> None:
    """Every key of the configuration above is needed, or its absence changes nothing."""

    def paths(values: dict[str, Any], prefix: str = "") -> list[str]:
        return [
            path
            for key, value in values.items()
            for path in (
                prefix + key,
                *(paths(value, f"{prefix}{key}.") if isinstance(value, dict) else ()),
            )
        ]

    for path in set(paths(NEW)) - {*NEEDED, "model_type"}:
        assert parse_config(changed(path, ...), FILE) == parse_config(NEW, FILE), path


@pytest.mark.parametrize("path", ["rope_theta", "rope_scaling.factor", "rope_scaling.rope_type"])
def test_a_missing_key_of_the_old_spelling_is_named(path: str) -> None:
    said = message(changed(f"text_config.{path}", ..., old_spelling()))
    assert "missing" in said
    assert path.rpartition(".")[2] in said


@pytest.mark.parametrize(
    "path",
    [
        "quantum_heads",
        "text_config.sliding_window",
        "vision_config.attention_bias",
        "text_config.rope_parameters.mscale",
    ],
)
def test_an_unknown_key_is_named(path: str) -> None:
    """Its effect would be lost, and nobody would know."""
    said = message(changed(path, 3))
    assert path in said
    assert "unknown key" in said


def test_keys_without_effect_may_be_there() -> None:
    """The generation settings that transformers 4 repeated in every section, for one."""
    values = copy.deepcopy(NEW)
    for section in (values, values["text_config"], values["vision_config"]):
        section |= {"_name_or_path": "a/b", "top_k": 50, "torchscript": False, "id2label": {}}
    assert parse_config(values, FILE) == parse_config(NEW, FILE)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("vision_config.num_attention_heads", 4),
        ("image_token_id", 102),
        ("text_config.head_dim", 9),
        ("vision_config.vision_output_dim", 73),
        ("vision_config.max_aspect_ratio_id", 4),
        ("text_config.rope_theta", 900.0),
        ("text_config.rope_scaling", {"rope_type": "default"}),
    ],
)
def test_a_contradiction_is_named(path: str, value: object) -> None:
    """Two keys that say different things: neither is taken in silence.

    Of two spellings of RoPE in one file the older was once ignored.
    """
    assert path.rpartition(".")[2] in message(changed(path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("text_config.hidden_act", "gelu"),
        ("vision_config.hidden_act", "quick_gelu"),
        ("vision_config.num_channels", 1),
        ("text_config.rope_parameters.rope_type", "yarn"),
        ("text_config.rope_parameters.partial_rotary_factor", 0.5),
        ("text_config.rope_traditional", True),
        ("text_config.num_attention_heads", 5),
        ("text_config.num_key_value_heads", 4),
        ("vision_config.attention_heads", 5),
        ("vision_config.patch_size", 13),
        ("vision_config.supported_aspect_ratios", [[1, 1], [1, 2]]),
        ("vision_config.intermediate_layers_indices", [0, 3]),
        ("text_config.cross_attention_layers", [5]),
        ("text_config.cross_attention_layers", [-1]),
        ("image_token_index", 99),
        ("image_token_index", 108),
        ("text_config.hidden_size", 0),
        ("text_config.intermediate_size", 2**31),
        ("text_config.num_hidden_layers", 10_000_000),
        ("vision_config.num_global_layers", 10_000_000),
        ("text_config.rms_norm_eps", -1e-5),
        ("text_config.rms_norm_eps", float("nan")),
        ("text_config.rope_parameters.rope_theta", float("inf")),
        ("text_config.num_hidden_layers", 5.0),
        ("text_config.num_hidden_layers", True),
        ("quantization", {"bits": 4}),
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    ],
)
def test_what_cannot_be_run_is_named(path: str, value: object) -> None:
    """Absurd sizes were once an OverflowError, and absurd numbers of layers an endless load."""
    said = message(changed(path, value))
    key = path.rpartition(".")[2]
    assert key in said or key.removesuffix("_config") in said


def test_the_odd_geometry_of_heads_is_checked_by_the_same_key() -> None:
    """num_key_value_heads of 3 divides 6 heads, so it is fine."""
    config = parse_config(changed("text_config.num_key_value_heads", 3), FILE)
    assert config.text.num_key_value_heads == 3


@pytest.mark.parametrize("model_type", ["llama", "llava", "qwen2_vl", None])
def test_another_architecture_is_named(model_type: str | None) -> None:
    """The error says what was found, and what this program runs."""
    said = message(changed("model_type", model_type))
    assert repr(model_type) in said
    assert "'mllama'" in said


@pytest.mark.parametrize("values", [[], "mllama", None, 3])
def test_json_that_is_no_object(values: object) -> None:
    assert "expected an object" in message(values)


def test_quantization_with_overrides() -> None:
    """`quantization` has the default, and modules that differ from it."""
    values = changed(
        "quantization",
        {
            "group_size": 64,
            "bits": 4,
            "language_model.lm_head": {"group_size": 32, "bits": 8},
            "language_model.model.layers.0": True,
        },
    )
    quantization = parse_config(values, FILE).quantization
    assert quantization is not None
    assert quantization.of("language_model.lm_head") == Quantization(32, 8, "affine")
    assert quantization.of("language_model.model.norm") == Quantization(64, 4, "affine")


def test_quantization_under_either_name() -> None:
    described = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    expected = Quantization(32, 4, "mxfp4")
    for key in ("quantization", "quantization_config"):
        quantization = parse_config(changed(key, described), FILE).quantization
        assert quantization is not None
        assert quantization.default == expected


def test_an_unknown_key_of_a_quantization_is_named() -> None:
    assert "zero_point" in message(
        changed("quantization", {"group_size": 64, "bits": 4, "zero_point": 3})
    )


@pytest.mark.parametrize("content", ["", "{", "\xff", "[" * 100_000], ids=len)
def test_a_file_that_is_no_json(content: str, tmp_path: Path) -> None:
    """The last one nests so deep that Python's parser gives up with a RecursionError."""
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        load_config(tmp_path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json is missing"):
        load_config(tmp_path)


def test_the_file_is_read_whatever_the_locale(tmp_path: Path) -> None:
    """JSON is UTF-8, in a locale that is not, too."""
    values = {**NEW, "_name_or_path": "Модель"}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    assert load_config(tmp_path) == parse_config(NEW, FILE)


NONSENSE = (None, "", "text", -1, 0, 1.5, 10**30, float("nan"), [], [[]], {}, {"a": 1}, True)


def test_nonsense_anywhere_is_a_user_error() -> None:
    """Whatever stands in place of a value, the file is read or refused, and nothing else breaks."""

    def paths(values: dict[str, Any], prefix: str = "") -> list[str]:
        found = []
        for key, value in values.items():
            found.append(prefix + key)
            if isinstance(value, dict):
                found += paths(value, f"{prefix}{key}.")
        return found

    quantized = changed(
        "quantization", {"group_size": 64, "bits": 4, "mode": "affine", "head": {"bits": 8}}
    )
    quantized["quantization"]["head"]["group_size"] = 32
    for values in (NEW, old_spelling(), quantized):
        assert isinstance(parse_config(values, FILE), ModelConfig)
        for path in paths(values):
            for nonsense in NONSENSE:
                try:
                    parse_config(changed(path, nonsense, values), FILE)
                except UserError:
                    continue
                except Exception as error:
                    raise AssertionError(f"{path} = {nonsense!r}") from error


def test_the_order_of_keys_means_nothing() -> None:
    keys = list(NEW["text_config"].items())
    random.Random(0).shuffle(keys)
    assert parse_config(changed("text_config", dict(keys)), FILE) == parse_config(NEW, FILE)


# As trainers, converters and hubs have written them.
WITHOUT_EFFECT: dict[str, Any] = {
    "hidden_size": 48,  # LLaMA-Factory copies the text's
    "vocab_size": 100,
    "num_attention_heads": 6,
    "max_position_embeddings": 500,
    "rms_norm_eps": 1e-4,
    "cross_attention_layers": [0, 3],
    "num_key_value_heads": None,
    "unsloth_fixed": True,
    "unsloth_version": "2024.12.4",
    "model_name": "unsloth/llama-3.2-11b-vision-instruct",
    "attention_dropout": 0.0,
    "text_config.attention_dropout": 0.1,
    "text_config.hidden_dropout_prob": 0.1,
    "mlp_bias": False,
    "text_config.mlp_bias": False,
    "text_config.attention_bias": False,
    "text_config.pretraining_tp": 1,
    "pretraining_tp": 1,
    "_attn_implementation": "flash_attention_2",
    "attn_implementation": "sdpa",
    "_commit_hash": "0123",
    "use_flash_attention_2": True,
    "text_config.sliding_window": None,
    "text_config.rope_parameters.mscale": None,
    "vision_config.attention_dropout": 0.0,
    "text_config.image_token_index": 101,
    "text_config.logit_scale": 1.0,
    "text_config.tensor_parallel_size": 1,
    "text_config.num_experts": 0,
    "ignore_index": -100,
    "num_labels": 2,
    "model_max_length": 2048,
    "max_seq_length": 2048,
    "gradient_checkpointing": True,
    "freeze_vision_tower": False,
    "license": "llama3.2",
    "base_model_name": "meta-llama/Llama-3.2-11B-Vision-Instruct",
    "mlx_version": "0.30.1",
    "training_args": {"lr": 1e-5},
    "wandb_run": None,
    "chat_template": "{{ bos }}",
    "auto_map": {},
    "transformers.js_config": {"kv_cache_dtype": "float16"},
    "quantization_config": None,
    "text_config.initializer_factor": 1.0,
    "router_aux_loss_coef": 0.001,
}
WITH_EFFECT: dict[str, Any] = {
    "hidden_size": 49,
    "vocab_size": 101,
    "cross_attention_layers": [0],
    "mlp_bias": True,
    "text_config.attention_bias": True,
    "text_config.pretraining_tp": 2,
    "text_config.sliding_window": 4096,
    "text_config.logit_scale": 0.5,
    "text_config.num_experts": 8,
    "text_config.use_alibi": True,
    "text_config.qk_norm": True,
    "text_config.final_logit_softcapping": 30.0,
    "text_config.activation_name": "relu",
    "vision_config.use_head": True,
    "vision_config.norm_type": "rms",
    "auto_map": {"AutoModel": "modeling.Other"},
    "quantum": "many",
}


@pytest.mark.parametrize(("path", "value"), WITHOUT_EFFECT.items(), ids=WITHOUT_EFFECT)
def test_a_key_without_effect_passes(path: str, value: object) -> None:
    if path.startswith("transformers.js"):
        assert parse_config({**NEW, path: value}, FILE) == parse_config(NEW, FILE)
        return
    assert parse_config(changed(path, value), FILE) == parse_config(NEW, FILE)


@pytest.mark.parametrize(("path", "value"), WITH_EFFECT.items(), ids=WITH_EFFECT)
def test_a_key_that_may_have_an_effect_is_named(path: str, value: object) -> None:
    assert path in message(changed(path, value))


def test_a_copy_that_differs_says_from_what() -> None:
    assert "hidden_size is 49, but text_config.hidden_size is 48" in message(
        changed("hidden_size", 49)
    )
