"""What is adapted, and what a person is told who asks for more than there is."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from random_model import CONFIG

from llavacot_mlx.checkpoint.adapter_config import FineTuneType
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.lora import DoRALinear, LoRALinear
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.train.lora_setup import apply_lora, trainable_count
from llavacot_mlx.train.settings import LoRASettings, TrainSettings

# CONFIG has four text layers, of which 0 and 2 are cross-attention.
SELF = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}
CROSS = {name.replace("self", "cross") for name in SELF}
MLP = {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}


@pytest.fixture
def fresh() -> Mllama:
    """A model to be changed."""
    return Mllama(CONFIG)


def adapted(model: Mllama) -> dict[str, LoRALinear]:
    return {path: m for path, m in model.named_modules() if isinstance(m, LoRALinear)}


def trained(model: Mllama) -> set[str]:
    return {name for name, _ in tree_flatten(model.trainable_parameters())}


def text_paths(*layers: int) -> set[str]:
    return {
        f"language_model.model.layers.{layer}.{name}"
        for layer in layers
        for name in (CROSS if layer in (0, 2) else SELF) | MLP
    }


def test_every_linear_of_the_text_layers_by_default(fresh: Mllama) -> None:
    apply_lora(fresh, TrainSettings(lora_parameters=LoRASettings(rank=3)))
    assert set(adapted(fresh)) == text_paths(0, 1, 2, 3)
    assert trained(fresh) == {
        f"{path}.{part}" for path in adapted(fresh) for part in ("lora_a", "lora_b")
    }


def test_layers_count_from_the_last(fresh: Mllama) -> None:
    apply_lora(fresh, TrainSettings(lora_parameters=LoRASettings(rank=3), num_layers=2))
    assert set(adapted(fresh)) == text_paths(2, 3)


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (("q_proj",), {"1.self_attn.q_proj", "0.cross_attn.q_proj"}),
        (("self_attn.q_proj", "mlp.up_proj"), {"1.self_attn.q_proj", "0.mlp.up_proj"}),
        (("cross_attn.v_proj",), {"0.cross_attn.v_proj"}),
    ],
)
def test_keys_are_ends_of_paths(fresh: Mllama, keys: tuple[str, ...], names: set[str]) -> None:
    apply_lora(fresh, TrainSettings(lora_parameters=LoRASettings(rank=3, keys=keys)))
    paths = set(adapted(fresh))
    assert {f"language_model.model.layers.{name}" for name in names} <= paths
    assert all(path.endswith(keys) for path in paths)


def test_dora_trains_lengths_too(fresh: Mllama) -> None:
    apply_lora(
        fresh,
        TrainSettings(
            fine_tune_type=FineTuneType.DORA, lora_parameters=LoRASettings(rank=3), num_layers=1
        ),
    )
    assert all(isinstance(layer, DoRALinear) for layer in adapted(fresh).values())
    assert {name.rpartition(".")[2] for name in trained(fresh)} == {"lora_a", "lora_b", "m"}
    layer = adapted(fresh)["language_model.model.layers.3.mlp.up_proj"]
    assert trainable_count(layer) == 3 * (48 + 60) + 60


def test_vision_adds_the_tower_and_the_projector(fresh: Mllama) -> None:
    apply_lora(
        fresh,
        TrainSettings(
            lora_parameters=LoRASettings(rank=3, keys=("q_proj",)), num_layers=1, train_vision=True
        ),
    )
    paths = set(adapted(fresh))
    assert "multi_modal_projector" in paths
    assert "vision_tower.global_transformer.layers.0.mlp.fc2" in paths
    assert "vision_tower.transformer.layers.1.self_attn.o_proj" in paths
    assert len(paths) == 1 + 1 + 3 * 6


@pytest.mark.parametrize("num_layers", [-1, 4])
def test_full_trains_all_of_the_language_model(fresh: Mllama, num_layers: int) -> None:
    apply_lora(fresh, TrainSettings(fine_tune_type=FineTuneType.FULL, num_layers=num_layers))
    assert trained(fresh) == {
        name for name, _ in tree_flatten(fresh.parameters()) if name.startswith("language_model.")
    }


def test_full_of_some_layers_leaves_the_rest(fresh: Mllama) -> None:
    apply_lora(fresh, TrainSettings(fine_tune_type=FineTuneType.FULL, num_layers=2))
    assert {name.split(".")[3] for name in trained(fresh)} == {"2", "3"}
    assert "language_model.model.layers.2.cross_attn_mlp_gate" in trained(fresh)


def test_full_with_vision_trains_everything(fresh: Mllama) -> None:
    apply_lora(fresh, TrainSettings(fine_tune_type=FineTuneType.FULL, train_vision=True))
    assert trained(fresh) == {name for name, _ in tree_flatten(fresh.parameters())}


def test_the_start_follows_from_the_seed(fresh: Mllama) -> None:
    """And from nothing else: the global random state is left alone."""

    def start(seed: int) -> dict[str, mx.array]:
        model = Mllama(CONFIG)
        mx.random.uniform()
        apply_lora(model, TrainSettings(lora_parameters=LoRASettings(rank=3), seed=seed))
        return dict(tree_flatten(model.trainable_parameters()))

    first, again, other = start(1), start(1), start(2)
    for name, array in first.items():
        assert mx.array_equal(array, again[name]).item()
        assert mx.array_equal(array, other[name]).item() == name.endswith("lora_b")
    matrices = [a for name, a in first.items() if name.endswith("gate_proj.lora_a")]
    assert not mx.array_equal(matrices[0], matrices[1]).item()


def test_a_quantized_layer_stays_inside(fresh: Mllama) -> None:
    model = quantized(fresh)
    apply_lora(
        model,
        TrainSettings(lora_parameters=LoRASettings(rank=3, keys=("down_proj",)), num_layers=1),
    )
    (layer,) = adapted(model).values()
    assert isinstance(layer.linear, nn.QuantizedLinear)
    assert trained(model) == {
        f"language_model.model.layers.3.mlp.down_proj.lora_{part}" for part in "ab"
    }


def quantized(model: Mllama) -> Mllama:
    """With a layer in 4 bits; that it is wider than the others does not matter here."""
    linear = nn.Linear(64, 48, bias=False)
    model.language_model.model.layers[3].mlp.down_proj = linear.to_quantized(32, 4)
    return model


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            TrainSettings(lora_parameters=LoRASettings(keys=("q_proj", "query"))),
            r"no text layer has a 'query'; there are cross_attn\.k_proj, .*self_attn\.v_proj",
        ),
        (
            TrainSettings(lora_parameters=LoRASettings(keys=("self_attn.q",))),
            r"no text layer has a 'self_attn\.q'",
        ),
        (
            TrainSettings(lora_parameters=LoRASettings(keys=("cross_attn.q_proj",)), num_layers=1),
            "none of cross_attn.q_proj is in the last 1 text layers",
        ),
        (TrainSettings(lora_parameters=LoRASettings(rank=0)), "rank 0: it must be 1 or more"),
        (
            TrainSettings(lora_parameters=LoRASettings(rank=17)),
            r"rank 17 is more than language_model\.model\.layers\.0\.cross_attn\.k_proj has: "
            "at most 16",
        ),
        (TrainSettings(num_layers=5), "num_layers 5: this model has 4 text layers"),
        (TrainSettings(num_layers=0), "num_layers 0"),
        (TrainSettings(num_layers=-2), "num_layers -2"),
        (TrainSettings(lora_parameters=LoRASettings(dropout=1.0)), "dropout 1"),
        (
            TrainSettings(
                fine_tune_type=FineTuneType.FULL, lora_parameters=LoRASettings(keys=("q_proj",))
            ),
            "keys choose what LoRA adapts",
        ),
    ],
)
def test_what_cannot_be_trained_is_named(
    fresh: Mllama, settings: TrainSettings, message: str
) -> None:
    """And the model is left as it was."""
    with pytest.raises(UserError, match=message):
        apply_lora(fresh, settings)
    assert not adapted(fresh)
    assert trained(fresh) == {name for name, _ in tree_flatten(fresh.parameters())}


def test_full_of_quantized_weights_is_an_error(fresh: Mllama) -> None:
    with pytest.raises(UserError, match="full fine-tuning needs weights that are not quantized"):
        apply_lora(quantized(fresh), TrainSettings(fine_tune_type=FineTuneType.FULL))
