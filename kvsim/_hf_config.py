"""Hugging Face config.json to a Model.

Each family's config names the same few facts differently; this module is the dictionary. A
`model_type` that is not known is read as a llama-like decoder, with a warning, when it has the keys
for that.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvsim._toml import Source
from kvsim.errors import ModelError, shown
from kvsim.model import Model

__all__ = ["read_config"]

_DENSE = ("llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2", "glm4", "exaone4", "seed_oss")
_LATENT = ("deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2", "glm_moe_dsa")
_EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe", "glm4_moe", "minimax_m2", "minimax", "dbrx", "olmoe")
_HYBRID = ("qwen3_next", "qwen3_5", "qwen3_5_moe", "qwen3_5_text", "qwen3_5_moe_text")
_GEMMA = ("gemma3", "gemma3_text")
_LLAMA4 = ("llama4", "llama4_text")
_KNOWN = (*_DENSE, *_LATENT, *_EXPERTS, *_HYBRID, *_GEMMA, *_LLAMA4, "opt", "bloom", "gpt_oss")
_TIED_BY_DEFAULT = (*_GEMMA, "opt", "bloom")
_TORCH = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float8_e4m3fn": "fp8"}
_LARGEST_FILE = 16 << 20


class _Config:
    """A config's keys, with names tried in order and messages that say which were."""

    def __init__(self, values: Mapping[str, Any], place: str) -> None:
        self.values = values
        self.place = place

    def whole(self, *keys: str, default: int | None = None) -> int:
        for key in keys:
            value = self.values.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ModelError(f"{self.place}: {key}: found {shown(value)}, expected a whole number, 0 or more")
            return value
        if default is None:
            raise ModelError(f"{self.place}: {' or '.join(keys)}: found nothing, expected a whole number")
        return default

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ModelError(f"{self.place}: {key}: found {shown(value)}, expected true or false")
        return value

    def texts(self, key: str) -> list[str]:
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ModelError(f"{self.place}: {key}: found {shown(value)}, expected a list of layer types")
        return value


def read_config(config: str | os.PathLike[str] | Mapping[str, Any], *, name: str = "") -> Model:
    """Make a Model of a config.json: a path, the folder that holds one, or its dict.

    The text model of a multi-modal config is taken, its vision tower left out.
    """
    values, place, found_name = _read(config)
    inner = values.get("text_config")
    if isinstance(inner, Mapping):
        kept = {k: values[k] for k in ("quantization_config", "torch_dtype", "tie_word_embeddings") if k in values}
        values = kept | dict(inner)
    family = values.get("model_type")
    if not isinstance(family, str):
        raise ModelError(f"{place}: model_type: found {shown(family)}, expected text such as 'llama'")
    if family not in _KNOWN:
        warnings.warn(f"{place}: model_type {family!r} is not known: read as a decoder of llama's shape", stacklevel=3)
    c = _Config(values, place)
    shape = _common(c, family)
    if family in _LATENT:
        shape |= _latent(c)
    if family in _HYBRID:
        shape |= _hybrid(c, shape["layers"])
    shape |= _feed_forward(c, family, shape["layers"])
    shape |= _windows(c, family, shape["layers"])
    shape["native_dtype"] = _precision(c)
    source = Source(f"shape from {place}; totals by arithmetic on the shape", "vendor")
    try:
        return Model(name=name or found_name or family, sources={"*": source}, **shape)
    except ModelError as error:
        raise ModelError(f"{place}: {error}") from None


def _read(config: str | os.PathLike[str] | Mapping[str, Any]) -> tuple[dict[str, Any], str, str]:
    if isinstance(config, Mapping):
        values, place, name = dict(config), "config.json", ""
    else:
        path = Path(config)
        if path.is_dir():
            path /= "config.json"
        place, name = (str(path), path.resolve().parent.name if path.name == "config.json" else path.stem)
        try:
            if path.stat().st_size > _LARGEST_FILE:
                raise ModelError(f"{place}: found more than 16 MiB, expected a config.json")
            values = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise ModelError(f"{place}: found no such file, expected a config.json") from None
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"{place}: found {str(error).splitlines()[0]}, expected readable JSON") from None
    if not isinstance(values, dict):
        raise ModelError(f"{place}: found {shown(values)}, expected a JSON object")
    # a hub name such as "Qwen/Qwen3-8B" is the best name there is
    hub = values.get("_name_or_path")
    if isinstance(hub, str) and hub and not hub.startswith((".", "/")):
        name = name or hub.rpartition("/")[2].lower()
    return values, place, name


def _common(c: _Config, family: str) -> dict[str, Any]:
    hidden = c.whole("hidden_size", "n_embed", "n_embd", "d_model")
    heads = c.whole("num_attention_heads", "n_head")
    if not heads:
        raise ModelError(f"{c.place}: num_attention_heads: found 0, expected 1 or more")
    latent = family in _LATENT
    shape: dict[str, Any] = {
        "layers": c.whole("num_hidden_layers", "n_layer"),
        "hidden": hidden,
        "heads": heads,
        "kv_heads": heads if latent else c.whole("num_key_value_heads", default=heads),
        "head_dim": c.whole("v_head_dim") if latent else c.whole("head_dim", default=hidden // heads),
        "vocab": c.whole("vocab_size"),
        "max_context": c.whole("max_position_embeddings", "seq_length", default=0),
        "tied": c.flag("tie_word_embeddings", family in _TIED_BY_DEFAULT),
    }
    if family in ("opt", "bloom"):
        shape["ffn_matrices"] = 2
        shape["attention_bias"] = True
    else:
        shape["attention_bias"] = c.flag("attention_bias", family in ("qwen2", "qwen2_moe"))
    if family == "opt":
        # the table of learned positions starts with two rows that no token uses
        shape["positions"] = shape["max_context"] + 2
    return shape


def _latent(c: _Config) -> dict[str, Any]:
    shape = {
        "q_lora_rank": c.whole("q_lora_rank", default=0),
        "kv_lora_rank": c.whole("kv_lora_rank"),
        "qk_nope_head_dim": c.whole("qk_nope_head_dim"),
        "qk_rope_head_dim": c.whole("qk_rope_head_dim"),
    }
    topk = c.whole("index_topk", default=0)
    if topk:
        shape |= {"sparse_tokens": topk, "sparse_layers": c.whole("num_hidden_layers")}
    return shape


def _hybrid(c: _Config, layers: int) -> dict[str, Any]:
    types = c.texts("layer_types")
    if types:
        linear = sum(kind == "linear_attention" for kind in types)
    else:
        linear = layers - layers // max(c.whole("full_attention_interval", default=4), 1)
    return {
        "linear_layers": linear,
        "linear_key_heads": c.whole("linear_num_key_heads"),
        "linear_value_heads": c.whole("linear_num_value_heads"),
        "linear_key_dim": c.whole("linear_key_head_dim"),
        "linear_value_dim": c.whole("linear_value_head_dim"),
        "linear_conv": c.whole("linear_conv_kernel_dim", default=4),
        "attention_gate": c.flag("attn_output_gate", True),
    }


def _feed_forward(c: _Config, family: str, layers: int) -> dict[str, Any]:
    experts = c.whole("n_routed_experts", "num_experts", "num_local_experts", default=0)
    if family == "opt":
        return {"ffn": c.whole("ffn_dim")}
    if family == "bloom":
        return {"ffn": c.whole("n_inner", default=4 * c.whole("hidden_size", "n_embed"))}
    if not experts:
        return {"ffn": c.whole("intermediate_size")}
    shape: dict[str, Any] = {
        "experts": experts,
        "experts_per_token": c.whole("num_experts_per_tok", "num_experts_per_token"),
        "moe_ffn": c.whole("moe_intermediate_size", "intermediate_size"),
        "moe_layers": layers,
    }
    if family in _LLAMA4:
        every = max(c.whole("interleave_moe_layer_step", default=1), 1)
        shape |= {
            "moe_ffn": c.whole("intermediate_size"),
            "shared_ffn": c.whole("intermediate_size"),
            "ffn": c.whole("intermediate_size_mlp", default=0) if every > 1 else 0,
            "moe_every": every,
            "moe_layers": layers // every,
        }
        return shape
    dense = min(c.whole("first_k_dense_replace", default=0), layers)
    if isinstance(c.values.get("mlp_only_layers"), list):
        dense += len(c.values["mlp_only_layers"])
    step = max(c.whole("decoder_sparse_step", "moe_layer_freq", default=1), 1)
    if step > 1:
        shape |= {"moe_every": step, "moe_layers": layers // step}
        dense = layers - layers // step
    elif dense:
        shape["moe_layers"] = layers - dense
    if dense:
        shape["ffn"] = c.whole("intermediate_size")
    shared = c.whole("shared_expert_intermediate_size", "shared_intermediate_size", default=0)
    shape["shared_ffn"] = shared or c.whole("n_shared_experts", default=0) * shape["moe_ffn"]
    return shape


def _windows(c: _Config, family: str, layers: int) -> dict[str, Any]:
    if family in _LLAMA4:
        window = c.whole("attention_chunk_size", default=0)
        kept = c.values.get("no_rope_layers")
        if isinstance(kept, list) and len(kept) == layers:
            local = sum(bool(rope) for rope in kept)
        else:
            local = layers - layers // max(c.whole("no_rope_layer_interval", default=4), 1)
    else:
        window = c.whole("sliding_window", default=0) if c.flag("use_sliding_window", True) else 0
        types = c.texts("layer_types")
        if types:
            local = sum(kind in ("sliding_attention", "chunked_attention") for kind in types)
        elif family == "gpt_oss":
            local = (layers + 1) // 2
        elif family in _GEMMA:
            local = layers - layers // max(c.whole("sliding_window_pattern", default=6), 1)
        else:
            local = layers
    return {"window": window, "local_layers": local} if window and local else {}


def _precision(c: _Config) -> str:
    quant = c.values.get("quantization_config")
    if isinstance(quant, Mapping):
        method = str(quant.get("quant_method", "")).lower()
        bits = quant.get("bits", quant.get("w_bit"))
        if method in ("fp8", "mxfp4", "nvfp4"):
            return method
        if "fp4" in json.dumps(dict(quant), default=str).lower():
            return "nvfp4"
        if bits in (4, 8):
            return "int4" if bits == 4 else "int8"
        if "fp8" in method or "float8" in method:
            return "fp8"
        raise ModelError(
            f"{c.place}: quantization_config: found {shown(method)}, expected fp8, mxfp4, nvfp4, or bits of 4 or 8"
        )
    torch = c.values.get("torch_dtype", c.values.get("dtype"))
    if torch is None:
        return "bf16"
    if torch not in _TORCH:
        raise ModelError(f"{c.place}: torch_dtype: found {shown(torch)}, expected one of {', '.join(_TORCH)}")
    return _TORCH[str(torch)]
