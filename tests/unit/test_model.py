"""Models: the presets give the published figures, config.json files give the presets, work adds up."""

from __future__ import annotations

import json
import os
import pickle
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsim.errors import ConfigError, KvsimError, ModelError, UnknownNameError
from kvsim.model import ATTENTION, DTYPES, FFN, Model

SHARED = Path(os.environ.get("KVSIM_SHARED", Path(__file__).parents[2].parent / "shared"))
FACTS = SHARED / "facts" / "models.toml"


def facts() -> dict[str, Any]:
    if not FACTS.is_file():
        pytest.skip(f"no {FACTS.name} beside the repository (KVSIM_SHARED names its folder)")
    return tomllib.loads(FACTS.read_text("utf-8"))["model"]


# ------------------------------------------------------------------ presets


def test_there_is_a_preset_of_every_model_of_the_facts() -> None:
    assert set(Model.names()) == set(facts())
    assert len(Model.names()) >= 30


@pytest.mark.parametrize("name", Model.names())
def test_a_preset_gives_the_published_figures(name: str) -> None:
    fact, model = facts()[name], Model.load(name)
    assert model.name == name
    assert model.parameters_total == fact["params_total"]
    assert model.parameters_active == fact["params_active"]
    assert model.parameters_read_per_token == fact["params_read_per_token"]
    assert model.expert_parameters == fact.get("expert_params", 0)
    assert model.weight_bytes == fact["weight_bytes_native"]
    assert model.with_(weights_dtype="bf16").weight_bytes == fact["weight_bytes_bf16"]
    assert model.with_(weights_dtype="fp8").weight_bytes == fact["weight_bytes_fp8"]
    assert model.kv_bytes_per_token == fact.get("kv_bpt_global_bf16", fact["kv_bpt_bf16"])
    assert model.kv_fixed_bytes == fact.get("kv_fixed_bf16", 0)
    assert model.state_bytes == fact.get("state_bytes_fp32", 0)
    assert model.global_layers == fact.get("global_layers", fact["layers"])
    assert model.max_context == fact["max_context"]
    if "pub_total" in fact:
        assert model.parameters_total == pytest.approx(fact["pub_total"], rel=0.03)


@pytest.mark.parametrize("name", Model.names())
def test_arithmetic_on_a_presets_shape_gives_its_totals(name: str) -> None:
    model = Model.load(name)
    # naming a field of the shape makes every derived number be worked out again
    again = model.with_(layers=model.layers)
    within = 0.05 if name == "kimi-k3" else 0.005  # its experts' latent projections are not in the shape
    for key in ("parameters_total", "parameters_active", "parameters_read_per_token"):
        assert getattr(again, key) == pytest.approx(getattr(model, key), rel=within), key
    assert again.state_bytes == model.state_bytes


@pytest.mark.parametrize("name", Model.names())
def test_a_presets_weights_are_divided_without_loss(name: str) -> None:
    model = Model.load(name)
    blocks = model.weight_blocks()
    assert sum(block.bytes for block in blocks) == model.weight_bytes
    assert all(block.bytes > 0 for block in blocks)
    assert len({block.label for block in blocks}) == len(blocks)
    assert sum(block.is_expert for block in blocks) == model.moe_layers
    layers = [block.label for block in blocks if block.label.endswith(" attention")]
    assert len(layers) == model.layers
    assert ("embedding" in {block.label for block in blocks}) is not model.tied
    assert {block.operation for block in blocks} == {ATTENTION, FFN}
    # all experts touched = all feed-forward weights; one token = what is active
    assert model.ffn_read_bytes(1e9) == model.ffn_bytes
    assert model.ffn_read_bytes(0) == 0
    once = model.with_(weights_dtype="fp8")
    assert once.ffn_read_bytes(1) == pytest.approx(once.ffn_parameters_active, rel=1e-9)


@pytest.mark.parametrize("name", Model.names())
def test_every_number_of_a_preset_has_a_source(name: str) -> None:
    model = Model.load(name)
    for key in ("layers", "parameters_total", "kv_heads", "attention_parameters"):
        source = model.source(key)
        assert source is not None
        assert source.text
    text = files("kvsim").joinpath("presets", "models", f"{name}.toml").read_text()
    remembered = {key for key, source in model.sources.items() if source.quality == "memory"}
    assert bool(remembered) == ("memory" in text)
    assert {key for key, _ in model.doubtful()} >= remembered - {"*"}


@pytest.mark.parametrize("name", ["llama-3.1-8b", "gpt-oss-120b", "kimi-k3"])
def test_round_trips(name: str) -> None:
    model = Model.load(name)
    assert Model.from_dict(model.to_dict()) == model
    assert Model.from_dict(json.loads(json.dumps(model.to_dict()))).sources == model.sources
    model.weight_blocks()
    copy = pickle.loads(pickle.dumps(model))
    assert copy == model
    assert hash(copy) == hash(model)
    assert eval(repr(model), {"Model": Model}) == model
    assert Model.load(model) is model


# ------------------------------------------------------------------ config.json

LLAMA = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}
LATENT = {
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}
LLAMA4 = {
    "model_type": "llama4_text",
    "hidden_size": 5120,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 202048,
    "attention_chunk_size": 8192,
    "num_experts_per_tok": 1,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama-3.1-70b": LLAMA,
    "qwen2.5-7b": {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 131072,
        "sliding_window": 131072,
        "use_sliding_window": False,
        "torch_dtype": "bfloat16",
    },
    "qwen3-32b": {
        "model_type": "qwen3",
        "head_dim": 128,
        "hidden_size": 5120,
        "intermediate_size": 25600,
        "num_hidden_layers": 64,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "torch_dtype": "bfloat16",
        "sliding_window": None,
    },
    "opt-30b": {
        "model_type": "opt",
        "hidden_size": 7168,
        "ffn_dim": 28672,
        "num_hidden_layers": 48,
        "num_attention_heads": 56,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "torch_dtype": "float16",
    },
    "bloom-176b": {
        "model_type": "bloom",
        "n_embed": 14336,
        "n_layer": 70,
        "num_attention_heads": 112,
        "vocab_size": 250880,
        "seq_length": 2048,
        "torch_dtype": "float16",
    },
    "mixtral-8x7b": {
        "model_type": "mixtral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "vocab_size": 32000,
        "max_position_embeddings": 32768,
        "sliding_window": None,
        "torch_dtype": "bfloat16",
    },
    "qwen3-235b-a22b": {
        "model_type": "qwen3_moe",
        "decoder_sparse_step": 1,
        "head_dim": 128,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "mlp_only_layers": [],
        "moe_intermediate_size": 1536,
        "num_attention_heads": 64,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 94,
        "num_key_value_heads": 4,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "torch_dtype": "bfloat16",
    },
    "qwen3-next-80b-a3b": {
        "model_type": "qwen3_next",
        "full_attention_interval": 4,
        "head_dim": 256,
        "hidden_size": 2048,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_value_head_dim": 128,
        "intermediate_size": 5120,
        "moe_intermediate_size": 512,
        "num_attention_heads": 16,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "num_hidden_layers": 48,
        "num_key_value_heads": 2,
        "shared_expert_intermediate_size": 512,
        "vocab_size": 151936,
        "max_position_embeddings": 262144,
        "torch_dtype": "bfloat16",
    },
    "qwen3.5-397b-a17b": {
        "model_type": "qwen3_5_moe",
        "text_config": {
            "model_type": "qwen3_5_moe_text",
            "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"] * 15,
            "head_dim": 256,
            "hidden_size": 4096,
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 128,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 64,
            "linear_value_head_dim": 128,
            "moe_intermediate_size": 1024,
            "num_attention_heads": 32,
            "num_experts": 512,
            "num_experts_per_tok": 10,
            "num_hidden_layers": 60,
            "num_key_value_heads": 2,
            "shared_expert_intermediate_size": 1024,
            "vocab_size": 248320,
            "max_position_embeddings": 262144,
            "dtype": "bfloat16",
        },
        "vision_config": {"hidden_size": 1152},
    },
    "deepseek-v3": LATENT
    | {
        "model_type": "deepseek_v3",
        "first_k_dense_replace": 3,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "moe_layer_freq": 1,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_attention_heads": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 61,
        "num_key_value_heads": 128,
        "vocab_size": 129280,
        "max_position_embeddings": 163840,
    },
    "kimi-k2": LATENT
    | {
        "model_type": "kimi_k2",
        "first_k_dense_replace": 1,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 384,
        "n_shared_experts": 1,
        "num_attention_heads": 64,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 61,
        "num_key_value_heads": 64,
        "vocab_size": 163840,
        "max_position_embeddings": 131072,
    },
    "glm-4.5": {
        "model_type": "glm4_moe",
        "attention_bias": True,
        "first_k_dense_replace": 3,
        "head_dim": 128,
        "hidden_size": 5120,
        "intermediate_size": 12288,
        "moe_intermediate_size": 1536,
        "n_routed_experts": 160,
        "n_shared_experts": 1,
        "num_attention_heads": 96,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 92,
        "num_key_value_heads": 8,
        "vocab_size": 151552,
        "max_position_embeddings": 131072,
        "torch_dtype": "bfloat16",
    },
    "glm-5": LATENT
    | {
        "model_type": "glm_moe_dsa",
        "quantization_config": None,
        "q_lora_rank": 2048,
        "qk_nope_head_dim": 192,
        "v_head_dim": 256,
        "index_topk": 2048,
        "first_k_dense_replace": 3,
        "hidden_size": 6144,
        "intermediate_size": 12288,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_attention_heads": 64,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 78,
        "num_key_value_heads": 64,
        "vocab_size": 154880,
        "max_position_embeddings": 202752,
    },
    "gpt-oss-120b": {
        "model_type": "gpt_oss",
        "attention_bias": True,
        "head_dim": 64,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "layer_types": ["sliding_attention", "full_attention"] * 18,
        "num_attention_heads": 64,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "num_local_experts": 128,
        "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
        "sliding_window": 128,
        "vocab_size": 201088,
        "max_position_embeddings": 131072,
    },
    "gemma-3-27b": {
        "model_type": "gemma3",
        "torch_dtype": "bfloat16",
        "text_config": {
            "model_type": "gemma3_text",
            "head_dim": 128,
            "hidden_size": 5376,
            "intermediate_size": 21504,
            "num_attention_heads": 32,
            "num_hidden_layers": 62,
            "num_key_value_heads": 16,
            "sliding_window": 1024,
            "sliding_window_pattern": 6,
            "vocab_size": 262144,
            "max_position_embeddings": 131072,
        },
    },
    "llama-4-scout": {
        "model_type": "llama4",
        "torch_dtype": "bfloat16",
        "text_config": LLAMA4
        | {"num_local_experts": 16, "interleave_moe_layer_step": 1, "max_position_embeddings": 10485760},
    },
    "llama-4-maverick": {
        "model_type": "llama4",
        "torch_dtype": "bfloat16",
        "text_config": LLAMA4
        | {
            "num_local_experts": 128,
            "interleave_moe_layer_step": 2,
            "max_position_embeddings": 1048576,
            "no_rope_layers": [1, 1, 1, 0] * 12,
        },
    },
    "minimax-m2.5": {
        "model_type": "minimax_m2",
        "head_dim": 128,
        "hidden_size": 3072,
        "intermediate_size": 1536,
        "num_attention_heads": 48,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 62,
        "num_key_value_heads": 8,
        "num_local_experts": 256,
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
        "vocab_size": 200064,
        "max_position_embeddings": 196608,
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_gives_the_presets_figures(name: str) -> None:
    preset, model = Model.load(name), Model.from_config(CONFIGS[name], name=name)
    for key in (
        "kv_bytes_per_token",
        "kv_fixed_bytes",
        "state_bytes",
        "expert_parameters",
        "global_layers",
        "moe_layers",
        "moe_every",
        "sparse_tokens",
        "native_dtype",
        "max_context",
        "tied",
        "arch",
    ):
        assert getattr(model, key) == getattr(preset, key), key
    for key in (
        "parameters_total",
        "parameters_active",
        "parameters_read_per_token",
        "weight_bytes",
        "attention_parameters",
        "ffn_bytes",
    ):
        assert getattr(model, key) == pytest.approx(getattr(preset, key), rel=0.005), key
    for tokens in (1, 1000, 100_000):
        assert model.kv_stored_bytes(tokens) == preset.kv_stored_bytes(tokens)
        assert model.kv_read_bytes(tokens) == preset.kv_read_bytes(tokens)
        assert model.attention_flops(1, tokens) == preset.attention_flops(1, tokens)


def test_a_config_is_found_by_file_folder_and_dict(tmp_path: Path) -> None:
    folder = tmp_path / "my-llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    model = Model.from_config(LLAMA, name="my-llama")
    assert Model.load(folder) == Model.load(str(folder / "config.json")) == model
    assert Model.load(LLAMA | {"_name_or_path": "someone/My-Llama"}) == model
    assert Model.load(model.to_dict()) == model


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_hidden_layers": None}, "num_hidden_layers or n_layer: found nothing"),
        ({"num_hidden_layers": "80"}, "found '80', expected a whole number"),
        ({"num_hidden_layers": -80}, "found -80"),
        ({"num_hidden_layers": 0}, "layers: found 0, expected 1 or more"),
        ({"num_attention_heads": 0}, "num_attention_heads: found 0"),
        ({"num_key_value_heads": 7}, "kv_heads: found 7, expected a divisor of heads (64)"),
        ({"model_type": None}, "model_type: found None"),
        ({"torch_dtype": "posit8"}, "torch_dtype: found 'posit8'"),
        ({"quantization_config": {"quant_method": "magic"}}, "quantization_config: found 'magic'"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: found 'yes'"),
        ({"hidden_size": 10**30}, "expected 0 to"),
        ({"num_experts": 8, "num_experts_per_tok": 9}, "experts_per_token: found 9, expected 1 to"),
    ],
)
def test_bad_configs_say_what_is_wrong(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError) as caught:
        Model.from_config(LLAMA | change)
    assert says in str(caught.value)
    assert str(caught.value).startswith("config.json: ")
    assert "\n" not in str(caught.value)


def test_bad_files_say_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(ModelError, match="no such file"):
        Model.from_config(path)
    for text, says in (("{", "readable JSON"), ("[1]", "JSON object"), ("\xff", "readable JSON")):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(ModelError, match=says):
            Model.load(path)
    toml = tmp_path / "m.toml"
    for text, says in (
        ("layers = ", "readable TOML"),
        ("layers = 3", "hidden: found nothing"),
        ('base = "llama-3.1-8b"\nlayer = 3', "unknown key of a model 'layer': did you mean 'layers'"),
        ('base = "llama-3.1-8"', "unknown model 'llama-3.1-8': did you mean 'llama-3.1-8b'"),
        ('base = "m.toml"', "leads back to itself"),
        ('base = "llama-3.1-8b"\nlayers = 3.5', "found 3.5, expected a whole number"),
        ('base = "llama-3.1-8b"\nkv_dtype = "fp9"', "unknown kv_dtype 'fp9': did you mean"),
        ('base = "llama-3.1-8b"\n[sources]\nlayers = "x"', "expected {text = ..., quality"),
    ):
        toml.write_text(text)
        with pytest.raises(ConfigError) as caught:
            Model.load(toml)
        assert says in str(caught.value)
    with pytest.raises(ModelError, match="expected a name"):
        Model.load(7)  # type: ignore[arg-type]


def test_an_unknown_family_is_read_as_llama_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="model_type 'zebra' is not known"):
        model = Model.from_config(LLAMA | {"model_type": "zebra"})
    assert model.parameters_total == Model.load("llama-3.1-70b").parameters_total


# ------------------------------------------------------------------ changes


def test_base_files_and_changes_work_totals_out_again(tmp_path: Path) -> None:
    path = tmp_path / "half.toml"
    path.write_text('base = "llama-3.1-8b"\nlayers = 16\n')
    half, whole = Model.load(path), Model.load("llama-3.1-8b")
    assert half.name == "half"
    ends = 2 * whole.head_parameters + whole.hidden
    assert 2 * (half.parameters_total - ends) == whole.parameters_total - ends
    assert half == whole.with_(layers=16, name="half", title="half")
    assert half.source("layers").quality == "given"  # type: ignore[union-attr]
    assert whole.with_(kv_dtype="fp8").parameters_total == whole.parameters_total
    assert whole.with_(kv_dtype="fp8").kv_bytes_per_token == 65_536
    with pytest.raises(UnknownNameError, match="did you mean 'kv_dtype'"):
        whole.with_(kv_dtyp="fp8")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"layers": 0}, "layers: found 0"),
        ({"layers": True}, "expected a whole number"),
        ({"hidden": -1}, "expected 0 to"),
        ({"local_layers": 4}, "window: found 0"),
        ({"local_layers": 40, "window": 8}, "at most layers (32)"),
        ({"sparse_layers": 33, "sparse_tokens": 8}, "sparse_layers: found 33"),
        ({"experts": 8}, "experts_per_token: found 0"),
        ({"kv_lora_rank": 512}, "qk_rope_head_dim: found 0"),
        ({"ffn": 0}, "ffn: found 0"),
        ({"parameters_total": 10}, "parameters_total: found 10, expected at least"),
        ({"name": 3}, "name: found 3, expected text"),
    ],
)
def test_shapes_that_contradict_themselves(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError) as caught:
        Model.load("llama-3.1-8b").with_(**change)
    assert says in str(caught.value)


# ------------------------------------------------------------------ arithmetic


def test_kv_sizes_by_hand() -> None:
    gemma = Model.load("gemma-3-27b")
    layer = 2 * 16 * 128 * 2
    assert gemma.kv_layer_bytes == layer
    assert gemma.kv_stored_bytes(100) == 62 * layer * 100
    assert gemma.kv_stored_bytes(5000) == layer * (10 * 5000 + 52 * 1024)
    assert gemma.kv_read_bytes(5000) == gemma.kv_stored_bytes(5000)
    glm = Model.load("glm-5")
    assert glm.kv_stored_bytes(10_000) == 89_856 * 10_000
    assert glm.kv_read_bytes(10_000) == 89_856 * 2048
    m3 = Model.load("minimax-m3")
    assert m3.kv_read_bytes(10_000) == 2048 * (3 * 10_000 + 57 * 2048)
    hybrid = Model.load("qwen3-next-80b-a3b")
    assert hybrid.sequence_bytes(10) == 24_576 * 10 + 75_497_472


def test_flops_by_hand() -> None:
    model = Model.load("llama-3.1-8b")
    assert model.flops_per_token(ATTENTION) + model.flops_per_token(FFN) == 2.0 * model.parameters_read_per_token
    assert model.flops_per_token("ffn") == 2.0 * 32 * 3 * 4096 * 14336
    assert model.attention_flops(1, 1000) == 4 * 32 * 32 * 128 * 1000.5
    attention, ffn = model.prefill_flops(1000, 1010)
    assert ffn == 10 * model.flops_per_token(FFN)
    assert attention == 10 * 2.0 * model.attention_parameters + 4 * 32 * 32 * 128 * 10 * 1005
    with pytest.raises(UnknownNameError):
        model.flops_per_token(2)
    # latent attention decodes on the compressed KV: 512 + 64 for scores and 512 for values
    deepseek = Model.load("deepseek-v3")
    assert deepseek.attention_flops(1, 0, absorbed=True) == 2 * 61 * 128 * (512 + 64 + 512) * 0.5
    assert deepseek.attention_flops(1, 0, absorbed=False) == 2 * 61 * 128 * (192 + 128) * 0.5
    # a window: 128 tokens at most on half of the layers
    oss = Model.load("gpt-oss-20b")
    assert oss.attention_flops(1, 10_000) == 4 * 64 * 64 * (12 * 10_000.5 + 12 * 128)


@given(st.sampled_from(Model.names()), st.integers(0, 20_000), st.integers(1, 5_000), st.integers(1, 5_000))
def test_prefill_in_chunks_costs_what_the_whole_does(name: str, start: int, first: int, second: int) -> None:
    model = Model.load(name)
    middle, end = start + first, start + first + second
    parts = [model.prefill_flops(start, middle), model.prefill_flops(middle, end)]
    whole = model.prefill_flops(start, end)
    for operation in (ATTENTION, FFN):
        assert sum(part[operation] for part in parts) == pytest.approx(whole[operation], rel=1e-12)


def test_experts_touched() -> None:
    model = Model.load("mixtral-8x7b")
    assert model.experts_touched(1) == pytest.approx(2)
    assert model.experts_touched(2) == pytest.approx(8 * (1 - 0.75**2))
    assert model.experts_touched(0) == 0
    assert model.experts_touched(10_000) == pytest.approx(8)
    read = [model.ffn_read_bytes(tokens) for tokens in range(50)]
    assert read == sorted(read)
    assert Model.load("llama-3.1-8b").experts_touched(5) == 0


def test_precisions() -> None:
    model = Model.load("llama-3.1-8b")
    sizes = {dtype: model.with_(weights_dtype=dtype).weight_bytes for dtype in DTYPES}
    assert sizes["bf16"] == sizes["fp16"] == 2 * sizes["fp8"] == 2 * sizes["int8"]
    ends = 2 * (model.head_parameters + model.embedding_parameters)
    assert sizes["mxfp4"] == pytest.approx(ends + (sizes["bf16"] - ends) * 4.25 / 16)
    assert sizes["int4"] < sizes["mxfp4"] < sizes["nvfp4"] < sizes["fp8"]
    assert model.with_(weights_dtype="int4").compute_dtype == "bf16"
    assert model.compute_dtype == "bf16"
    assert Model.load("gpt-oss-20b").compute_dtype == "fp4"
    assert Model.load("deepseek-v3").dtype == "fp8"


def test_layers_with_experts() -> None:
    deepseek, maverick = Model.load("deepseek-v3"), Model.load("llama-4-maverick")
    assert [deepseek.is_moe_layer(layer) for layer in range(5)] == [False, False, False, True, True]
    assert [maverick.is_moe_layer(layer) for layer in range(4)] == [False, True, False, True]
    dense = {block.label: block.bytes for block in deepseek.weight_blocks()}
    assert dense["layer 0 ffn"] == 3 * 7168 * 18432
    assert "layer 0 experts" not in dense
    assert dense["layer 3 experts"] == 256 * 3 * 7168 * 2048


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown model 'llama-3.1-7b': did you mean 'llama-3.1-70b'"):
        Model.load("llama-3.1-7b")
    for name in ("", "nothing like it", "a\0b", "..", "../../setup"):
        with pytest.raises(KvsimError):
            Model.load(name)
