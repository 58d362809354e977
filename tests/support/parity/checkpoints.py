"""Random tiny Mllama checkpoints, written by transformers, and rewritten as others write them.

A checkpoint fresh from `MllamaForConditionalGeneration(config)` proves nothing: its gates are zero,
so the picture never reaches the text; its norms are ones; its weights are so small that greedy
decoding says one token for ever. The checkpoints here have every gate open, every norm and bias
off its neutral value, and weights large enough that the picture, the tile's place, the position
and the scaling of the positions all show in the logits. `test_checkpoints.py` measures that they
do, so that an equality found by the other tests means something.
"""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from llama_vocabulary import BOS, CHAT_TEMPLATE, IMAGE_TOKEN, SPECIAL_TOKENS, train
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    GenerationConfig,
    MllamaConfig,
    MllamaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

# Llama's special tokens follow its ordinary ones; the picture's comes one past the vocabulary.
ORDINARY_TOKENS = 309
VOCABULARY = ORDINARY_TOKENS + len(SPECIAL_TOKENS)
TOKEN_ID = {token: ORDINARY_TOKENS + index for index, token in enumerate(SPECIAL_TOKENS)}
IMAGE_TOKEN_ID = VOCABULARY

CORPUS = (
    "How many red circles are there? What is to the left of the large blue square?",
    "the user and the assistant describe the image; the answer is in the picture.",
    "user assistant system <SUMMARY> </SUMMARY> <CAPTION> <REASONING> <CONCLUSION>\n\n",
    "one\n\n\ntwo\n\n\nthree\n\n\nfour\n\n\nfive\n\n\n",
)


@dataclass(frozen=True)
class Llama3Scaling:
    """llama3's scaling of RoPE, with an original length so short that it acts within 100 tokens."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 64


@dataclass(frozen=True)
class Geometry:
    """The sizes of a tiny Mllama, none of them the 11B's, and the seed of its weights.

    The defaults are deliberately odd: three vision heads, six text heads on two key heads, head
    sizes of 8 and 12, cross-attention in the first layer and in two adjacent ones, intermediate
    layers out of order, and epsilons that differ from the defaults of either library.
    """

    seed: int = 0
    tile: int = 28  # pixels a side
    patch: int = 14
    max_tiles: int = 4
    vision_width: int = 24
    vision_heads: int = 3
    vision_layers: int = 3
    global_layers: int = 2
    vision_mlp: int = 40
    vision_eps: float = 1e-3
    intermediate_layers: tuple[int, ...] = (2, 0)
    width: int = 72
    heads: int = 6
    kv_heads: int = 2
    layers: int = 6
    cross_layers: tuple[int, ...] = (0, 3, 4)
    mlp: int = 100
    rms_eps: float = 1e-4
    rope_theta: float = 500.0
    rope_scaling: Llama3Scaling | None = None
    max_positions: int = 512

    @property
    def arrangements(self) -> tuple[tuple[int, int], ...]:
        """Every (rows, columns) of at most `max_tiles` tiles, in the order of their ids from 1."""
        counts = range(1, self.max_tiles + 1)
        return tuple((r, c) for r in counts for c in counts if r * c <= self.max_tiles)

    @property
    def tokens_per_tile(self) -> int:
        """Patches of a tile and its class token."""
        return (self.tile // self.patch) ** 2 + 1


def hf_config(geometry: Geometry) -> MllamaConfig:
    """`geometry` as a transformers config, dtype float32, `vision_output_dim` worked out."""
    rope: dict[str, Any] = {"rope_theta": geometry.rope_theta, "rope_type": "default"}
    if geometry.rope_scaling is not None:
        rope |= {"rope_type": "llama3", **vars(geometry.rope_scaling)}
    return MllamaConfig(
        vision_config={
            "hidden_size": geometry.vision_width,
            "attention_heads": geometry.vision_heads,
            "num_hidden_layers": geometry.vision_layers,
            "num_global_layers": geometry.global_layers,
            "intermediate_size": geometry.vision_mlp,
            "vision_output_dim": geometry.vision_width * (1 + len(geometry.intermediate_layers)),
            "image_size": geometry.tile,
            "patch_size": geometry.patch,
            "norm_eps": geometry.vision_eps,
            "max_num_tiles": geometry.max_tiles,
            "intermediate_layers_indices": list(geometry.intermediate_layers),
            "supported_aspect_ratios": [list(a) for a in geometry.arrangements],
        },
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": geometry.width,
            "num_attention_heads": geometry.heads,
            "num_key_value_heads": geometry.kv_heads,
            "num_hidden_layers": geometry.layers,
            "cross_attention_layers": list(geometry.cross_layers),
            "intermediate_size": geometry.mlp,
            "rms_norm_eps": geometry.rms_eps,
            "rope_parameters": rope,
            "max_position_embeddings": geometry.max_positions,
            "bos_token_id": TOKEN_ID["<|begin_of_text|>"],
            "eos_token_id": TOKEN_ID["<|eot_id|>"],
            "pad_token_id": TOKEN_ID["<|finetune_right_pad_id|>"],
            "tie_word_embeddings": False,
        },
        image_token_index=IMAGE_TOKEN_ID,
        tie_word_embeddings=False,
        dtype="float32",
    )


def open_up(model: MllamaForConditionalGeneration, seed: int) -> None:
    """Fill every parameter of `model`, in place, with values that leave nothing without effect.

    Gates are 0.5 to 1.5 in size, of either sign; norms spread around one; biases around zero;
    matrices are scaled by the square root of their inputs. `GAINS` lifts some of them: queries and
    keys, so that attention is pointed and not an average; what layers add to the text, so that the
    next token follows from more than the last one and greedy decoding does not turn in a circle.
    A parameter of a kind not known here is an error: it would stay at whatever neutral value it
    was born with.
    """
    noise = torch.Generator().manual_seed(seed)

    def normal(parameter: torch.Tensor, scale: float, mean: float = 0.0) -> torch.Tensor:
        return mean + scale * torch.randn(parameter.shape, generator=noise)

    def gate(parameter: torch.Tensor) -> torch.Tensor:
        size = 0.5 + torch.rand(parameter.shape, generator=noise)
        return size * torch.where(torch.rand(parameter.shape, generator=noise) < 0.5, -1.0, 1.0)

    def value(name: str, parameter: torch.Tensor) -> torch.Tensor:
        kind, leaf = name.split(".")[-2:]
        if "gate" in leaf:
            return gate(parameter)
        if "norm" in kind:
            return normal(parameter, 0.3, mean=1.0 if leaf == "weight" else 0.0)
        if leaf == "bias":
            return normal(parameter, 0.1)
        if leaf in {"class_embedding", "embedding"} or kind in EMBEDDINGS:
            return normal(parameter, 1.0)
        if leaf == "weight" and parameter.ndim > 1:
            return normal(parameter, 1 / math.sqrt(parameter[0].numel()))
        raise ValueError(f"{name} {tuple(parameter.shape)}: no rule for this parameter")

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            gain = next((gain for part, gain in GAINS.items() if part in name), 1.0)
            parameter.copy_(gain * value(f"model.{name}", parameter))


EMBEDDINGS = {"embedding", "embed_tokens", "tile_embedding"}
# By a part of the parameter's name; the first that fits counts.
GAINS = {
    "cross_attn.q_norm": 3.0,
    "cross_attn.k_norm": 3.0,
    "cross_attn.o_proj": 0.7,
    "q_proj": 1.7,
    "k_proj": 1.7,
    "self_attn.o_proj": 2.0,
    "down_proj": 3.0,
    "lm_head": 4.0,
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE in Llama 3's manner: bytes, some merges, special tokens, `<|image|>`.

    Its ids are laid out as the real one's: ordinary tokens, special ones up to `VOCABULARY`, and
    `<|image|>` = `VOCABULARY`, a row that the embedding has and the output head has not.
    """
    tokenizer = train(CORPUS, ORDINARY_TOKENS, (*SPECIAL_TOKENS, IMAGE_TOKEN))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def picture_settings(geometry: Geometry) -> dict[str, Any]:
    """`preprocessor_config.json` as the hub's Mllama folders have it, in `geometry`'s sizes."""
    return {
        "image_processor_type": "MllamaImageProcessor",
        "processor_class": "MllamaProcessor",
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "max_image_tiles": geometry.max_tiles,
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": {"height": geometry.tile, "width": geometry.tile},
    }


def write_checkpoint(folder: Path, geometry: Geometry) -> Path:
    """Write a whole model folder for `geometry` with transformers' own `save_pretrained`.

    Returns `folder`, which then holds float32 weights, config, generation config (with a list of
    stop tokens), tokenizer, chat template and picture settings: what `AutoProcessor` and
    `MllamaForConditionalGeneration` need, and what a hub folder has.
    """
    model = MllamaForConditionalGeneration(hf_config(geometry))
    open_up(model, geometry.seed)
    model.generation_config = GenerationConfig(
        bos_token_id=TOKEN_ID["<|begin_of_text|>"],
        eos_token_id=[TOKEN_ID[t] for t in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")],
        pad_token_id=TOKEN_ID["<|finetune_right_pad_id|>"],
        do_sample=True,
        temperature=0.6,
        top_p=0.9,
    )
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", picture_settings(geometry))
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """The object in the JSON file `path`."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write `value` to `path` as JSON."""
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


# Rewriters: the same model as other programs write it.

Layout = Literal["hub", "nested", "mlx"]
RENAMES: dict[Layout, tuple[tuple[str, str], ...]] = {
    # What hubs hold and what `save_pretrained` writes.
    "hub": (),
    # transformers from 4.52 in memory, and folders saved from its state dict.
    "nested": (
        ("language_model.lm_head.", "lm_head."),
        ("language_model.model.", "model.language_model."),
        ("vision_model.", "model.vision_model."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
    ),
    # mlx-vlm's folders; its convolution takes (out, rows, columns, in).
    "mlx": (("vision_model.", "vision_tower."),),
}


def relayout(source: Path, target: Path, layout: Layout) -> Path:
    """Copy the folder `source` to `target` with its tensors named as in `layout`."""

    def renamed(name: str) -> str:
        for old, new in RENAMES[layout]:
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name

    def rewritten(name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
        if layout == "mlx" and name.endswith("patch_embedding.weight"):
            tensor = tensor.permute(0, 2, 3, 1).contiguous()
        return renamed(name), tensor

    return rewrite_weights(source, target, rewritten)


def cast(source: Path, target: Path, dtype: torch.dtype) -> Path:
    """Copy the folder `source` to `target` with its weights and its config's dtype in `dtype`."""
    rewrite_weights(source, target, lambda name, tensor: (name, tensor.to(dtype)))
    config = read_json(target / "config.json")
    write_json(target / "config.json", config | {"dtype": str(dtype).removeprefix("torch.")})
    return target


def rewrite_weights(
    source: Path,
    target: Path,
    rewritten: Callable[[str, torch.Tensor], tuple[str, torch.Tensor]],
) -> Path:
    """Copy `source`, a folder with one weights file, with every name and tensor rewritten."""
    shutil.copytree(source, target)
    weights = load_file(source / "model.safetensors")
    changed = dict(rewritten(name, tensor) for name, tensor in weights.items())
    save_file(changed, target / "model.safetensors", metadata={"format": "pt"})
    return target


def respell(source: Path, target: Path) -> Path:
    """Copy the folder `source` to `target` with its config as transformers wrote it before 5.

    `rope_parameters` becomes `rope_theta` and `rope_scaling` (null without scaling), the vision
    heads are `num_attention_heads`, `dtype` is `torch_dtype`, and every section carries the
    settings of generation that version 4 repeated everywhere.
    """
    shutil.copytree(source, target)
    config = read_json(target / "config.json")
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.45.0.dev0"
    config["_name_or_path"] = "someone/else"
    vision, text = config["vision_config"], config["text_config"]
    vision["num_attention_heads"] = vision.pop("attention_heads")
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope.pop("rope_theta")
    text["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    for name, section in (("vision_config", vision), ("text_config", text)):
        section["torch_dtype"] = section.pop("dtype", config["torch_dtype"])
        config[name] = VERSION_4_SETTINGS | section
    write_json(target / "config.json", config)
    return target


# What transformers 4.45 wrote into each section of a config, whatever the model.
VERSION_4_SETTINGS: dict[str, Any] = {
    "_name_or_path": "",
    "add_cross_attention": False,
    "architectures": None,
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "bos_token_id": None,
    "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None,
    "decoder_start_token_id": None,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "finetuning_task": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_decoder": False,
    "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "length_penalty": 1.0,
    "max_length": 20,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_scores": False,
    "pad_token_id": None,
    "prefix": None,
    "problem_type": None,
    "pruned_heads": {},
    "remove_invalid_values": False,
    "repetition_penalty": 1.0,
    "return_dict": True,
    "return_dict_in_generate": False,
    "sep_token_id": None,
    "suppress_tokens": None,
    "task_specific_params": None,
    "temperature": 1.0,
    "tf_legacy_loss": False,
    "tie_encoder_decoder": False,
    "tie_word_embeddings": False,
    "tokenizer_class": None,
    "top_k": 50,
    "top_p": 1.0,
    "torchscript": False,
    "typical_p": 1.0,
    "use_bfloat16": False,
}


def shard(source: Path, target: Path, count: int = 3) -> Path:
    """Copy the folder `source` to `target` with its weights spread over `count` files and an index.

    Neighbouring tensors land in different files, so that no file holds a whole layer.
    """
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    weights = load_file(source / "model.safetensors")
    files = [f"model-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)]
    weight_map = {name: files[i % count] for i, name in enumerate(sorted(weights))}
    for file in files:
        part = {name: weights[name] for name, place in weight_map.items() if place == file}
        save_file(part, target / file, metadata={"format": "pt"})
    size = sum(t.numel() * t.element_size() for t in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    write_json(target / "model.safetensors.index.json", index)
    return target


def tensor_names(folder: Path) -> set[str]:
    """The names of all tensors in the folder's weight files."""
    names: set[str] = set()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            names |= set(tensors.keys())
    return names


# The checkpoints that the tests share. Seeds were chosen so that greedy decoding keeps saying new
# things and comes near no tie; `test_checkpoints.py` measures both.
GEOMETRIES: dict[str, Geometry] = {
    "four-tiles": Geometry(seed=0),
    "llama3-rope": Geometry(seed=6, rope_scaling=Llama3Scaling()),
    "five-heads-one-key": Geometry(
        max_tiles=3, vision_width=40, vision_heads=5, width=50, heads=5, kv_heads=1
    ),
    "large-tile": Geometry(
        seed=1,
        tile=56,
        layers=8,
        cross_layers=(0, 1, 7),
        intermediate_layers=(0, 1, 2),
        rope_scaling=Llama3Scaling(factor=4.0, high_freq_factor=2.0),
    ),
    "six-tiles": Geometry(seed=5, max_tiles=6, rope_scaling=Llama3Scaling(factor=16.0)),
    "two-tiles": Geometry(max_tiles=2, patch=7),
    "one-tile": Geometry(max_tiles=1, vision_heads=1, heads=3, kv_heads=3),
}
