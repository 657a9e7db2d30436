"""Models: shapes in, bytes and FLOPs out.

A :class:`Model` knows three sizes of KV (stored per token, read per token, fixed per sequence), the
state that linear layers keep, its weights by operation, and the work of a token. All of it is
arithmetic on the shape; where a checkpoint's own totals are known, a preset states them and they
win.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from kvsim import _toml
from kvsim._toml import DOUBTFUL, Source, find_source
from kvsim.errors import ModelError, UnknownNameError, shown

__all__ = ["ATTENTION", "DTYPES", "FFN", "Model", "WeightBlock"]

ATTENTION, FFN = 0, 1

# Bits a weight or a KV element takes, shared scales included: mxfp4 has 8 bits for 32 elements (OCP
# MX v1.0), nvfp4 8 bits for 16, int4 a 16-bit scale for 128. Scales of fp8 and int8 (1 in 128 x
# 128) are left out, below 0.1 %.
_BITS = {
    "fp32": (32, 1),
    "bf16": (16, 1),
    "fp16": (16, 1),
    "fp8": (8, 1),
    "int8": (8, 1),
    "nvfp4": (9, 2),
    "mxfp4": (17, 4),
    "int4": (33, 8),
}
DTYPES = tuple(_BITS)
_FOUR_BIT = ("nvfp4", "mxfp4", "int4")
_STATE_BYTES = 4  # linear layers keep their state in fp32
_DERIVED = (
    "parameters_total",
    "parameters_active",
    "parameters_read_per_token",
    "attention_parameters",
    "expert_parameters",
    "state_bytes",
)
_NOT_SHAPE = {"name", "title", "max_context", "sources", "native_dtype", "weights_dtype", "kv_dtype", *_DERIVED}
_LARGEST = 1 << 50
_TEXTS = ("name", "title", "native_dtype", "weights_dtype", "kv_dtype")


class WeightBlock(NamedTuple):
    """The weights that one operation of one layer reads, or the experts of one layer."""

    label: str
    operation: int
    bytes: int
    is_expert: bool


@dataclass(frozen=True, kw_only=True)
class Model:
    """A transformer's shape and precision.

    Counts are of the whole model. A derived field left at 0 is worked out from the shape.

    Attributes
    ----------
    layers, hidden, heads, kv_heads, head_dim, vocab, tied, max_context : the usual shape; `tied`
        embeddings serve as the LM head. With `kv_lora_rank` (multi-head latent attention),
        `head_dim` is the values' size.
    ffn : intermediate size of a dense layer (0 if there is none); `ffn_matrices` is 3 when gated,
        else 2.
    experts, experts_per_token, moe_ffn, shared_ffn, moe_layers, moe_every : mixture of experts;
        with `moe_every` n each nth layer has experts, else the last `moe_layers`.
    global_layers, local_layers, linear_layers : layers that attend to everything, to a `window`, or
        keep a state.
    sparse_layers, sparse_tokens : global layers that store everything but read at most so many
        tokens a step.
    linear_key_heads, linear_value_heads, linear_key_dim, linear_value_dim, linear_conv : a gated
        linear layer.
    q_lora_rank, kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim : latent attention.
    positions : rows of learned position embeddings; `attention_gate` doubles the query projection.
    parameters_total, parameters_active : of the whole, and what one token uses (its embedding table
        included).
    parameters_read_per_token : what one token reads, the input embedding's other rows left out.
    attention_parameters : all layers' attention with their norms; `expert_parameters` : one expert
        of one layer.
    state_bytes : what the linear layers keep for one sequence.
    native_dtype, weights_dtype, kv_dtype : of the checkpoint; of the weights ("native" for the
        checkpoint's); of the KV cache. A 4-bit weights dtype holds for the experts (all layers'
        matrices if there are none); the rest is bf16.

    Raises
    ------
    ModelError
        A shape that contradicts itself, or a number out of range.
    """

    name: str
    title: str = ""
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    ffn: int = 0
    ffn_matrices: int = 3
    tied: bool = False
    max_context: int = 0
    experts: int = 0
    experts_per_token: int = 0
    moe_ffn: int = 0
    shared_ffn: int = 0
    moe_layers: int = 0
    moe_every: int = 1
    local_layers: int = 0
    window: int = 0
    linear_layers: int = 0
    linear_key_heads: int = 0
    linear_value_heads: int = 0
    linear_key_dim: int = 0
    linear_value_dim: int = 0
    linear_conv: int = 0
    sparse_layers: int = 0
    sparse_tokens: int = 0
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    attention_gate: bool = False
    attention_bias: bool = False
    positions: int = 0
    native_dtype: str = "bf16"
    weights_dtype: str = "native"
    kv_dtype: str = "bf16"
    parameters_total: int = 0
    parameters_active: int = 0
    parameters_read_per_token: int = 0
    attention_parameters: int = 0
    expert_parameters: int = 0
    state_bytes: int = 0
    sources: Mapping[str, Source] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        self._check_types()
        put = object.__setattr__
        if not self.title:
            put(self, "title", self.name)
        if self.experts and not self.moe_layers:
            put(self, "moe_layers", self.layers // self.moe_every)
        self._check_shape()
        if not self.expert_parameters and self.experts:
            put(self, "expert_parameters", self.ffn_matrices * self.hidden * self.moe_ffn)
        if not self.attention_parameters:
            put(self, "attention_parameters", self._attention_by_shape())
        if not self.state_bytes:
            put(self, "state_bytes", self._state_by_shape())
        ends = self.embedding_parameters + (0 if self.tied else self.head_parameters)
        if not self.parameters_total:
            put(self, "parameters_total", ends + self.attention_parameters + self._ffn_by_shape())
        idle = (self.experts - self.experts_per_token) * self.expert_parameters * self.moe_layers
        if not self.parameters_active:
            put(self, "parameters_active", self.parameters_total - idle)
        if not self.parameters_read_per_token:
            rows = 0 if self.tied else self.embedding_parameters
            put(self, "parameters_read_per_token", self.parameters_active - rows)
        held = ends + self.attention_parameters + self.experts * self.expert_parameters * self.moe_layers
        if held > self.parameters_total:
            raise self._wrong(
                "parameters_total", self.parameters_total, f"at least the {held} of embeddings, attention and experts"
            )

    def _wrong(self, key: str, found: object, expected: str) -> ModelError:
        return ModelError(f"model {self.name}: {key}: found {shown(found)}, expected {expected}")

    def _check_types(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.name in _TEXTS:
                if not isinstance(value, str):
                    raise ModelError(f"model: {f.name}: found {shown(value)}, expected text")
            elif f.name in ("tied", "attention_gate", "attention_bias"):
                if not isinstance(value, bool):
                    raise self._wrong(f.name, value, "true or false")
            elif f.name != "sources":
                if isinstance(value, bool) or not isinstance(value, int):
                    raise self._wrong(f.name, value, "a whole number")
                if not 0 <= value <= _LARGEST:
                    raise self._wrong(f.name, value, f"0 to {_LARGEST}")

    def _check_shape(self) -> None:
        for key in ("layers", "hidden", "heads", "kv_heads", "head_dim", "vocab", "moe_every"):
            if not getattr(self, key):
                raise self._wrong(key, 0, "1 or more")
        if self.layers > 10_000:
            raise self._wrong("layers", self.layers, "at most 10000")
        if self.heads % self.kv_heads:
            raise self._wrong("kv_heads", self.kv_heads, f"a divisor of heads ({self.heads})")
        if self.local_layers + self.linear_layers > self.layers:
            raise self._wrong(
                "local_layers", self.local_layers, f"with linear_layers at most layers ({self.layers}) in all"
            )
        if self.local_layers and not self.window:
            raise self._wrong("window", 0, "the tokens that the local layers attend to")
        if self.sparse_layers > self.global_layers or (self.sparse_layers > 0) != (self.sparse_tokens > 0):
            raise self._wrong(
                "sparse_layers",
                self.sparse_layers,
                f"at most the {self.global_layers} global layers, with sparse_tokens above 0",
            )
        if self.experts_per_token > self.experts or (self.experts > 0 and not self.experts_per_token):
            raise self._wrong("experts_per_token", self.experts_per_token, f"1 to experts ({self.experts})")
        if self.moe_layers > self.layers or (self.moe_layers > 0 and not self.experts):
            raise self._wrong("moe_layers", self.moe_layers, f"at most layers ({self.layers}), and experts above 0")
        if self.experts and not self.moe_ffn and not self.expert_parameters:
            raise self._wrong("moe_ffn", 0, "the intermediate size of an expert")
        if self.moe_layers < self.layers and not self.ffn:
            raise self._wrong("ffn", 0, "the intermediate size of the dense layers")
        if bool(self.kv_lora_rank) != bool(self.qk_rope_head_dim):
            raise self._wrong("qk_rope_head_dim", self.qk_rope_head_dim, "above 0 exactly where kv_lora_rank is")
        for key, allowed in (("native_dtype", DTYPES), ("weights_dtype", (*DTYPES, "native")), ("kv_dtype", DTYPES)):
            if getattr(self, key) not in allowed:
                raise UnknownNameError(getattr(self, key), allowed, key, place=f"model {self.name}")

    # ---------------------------------------------------------------- shape

    @property
    def arch(self) -> str:
        """The family of shapes: "dense" or "moe", then "-mla" and "-hybrid" where they hold."""
        parts = ["moe" if self.experts else "dense"]
        if self.kv_lora_rank:
            parts.append("mla")
        if self.linear_layers:
            parts.append("hybrid")
        return "-".join(parts)

    @property
    def global_layers(self) -> int:
        """Layers whose KV grows with the context."""
        return self.layers - self.local_layers - self.linear_layers

    @property
    def embedding_parameters(self) -> int:
        """The input embedding, learned positions included."""
        return (self.vocab + self.positions) * self.hidden

    @property
    def head_parameters(self) -> int:
        """The LM head that every token reads; it is the input embedding when `tied`."""
        return self.vocab * self.hidden

    @property
    def ffn_parameters(self) -> int:
        """All feed-forward weights: dense layers, experts, shared experts, routers."""
        ends = self.embedding_parameters + (0 if self.tied else self.head_parameters)
        return self.parameters_total - ends - self.attention_parameters

    @property
    def ffn_parameters_active(self) -> int:
        """The feed-forward weights that one token uses."""
        idle = (self.experts - self.experts_per_token) * self.expert_parameters * self.moe_layers
        return self.ffn_parameters - idle

    def is_moe_layer(self, layer: int) -> bool:
        """Say whether a layer (from 0) has experts."""
        if self.moe_every > 1:
            return self.experts > 0 and (layer + 1) % self.moe_every == 0
        return layer >= self.layers - self.moe_layers

    def _attention_by_shape(self) -> int:
        d, h = self.hidden, self.heads
        if self.kv_lora_rank:
            qk = self.qk_nope_head_dim + self.qk_rope_head_dim
            query = d * self.q_lora_rank + self.q_lora_rank * h * qk if self.q_lora_rank else d * h * qk
            down = d * (self.kv_lora_rank + self.qk_rope_head_dim)
            up = self.kv_lora_rank * h * (self.qk_nope_head_dim + self.head_dim)
            full = query + down + up + h * self.head_dim * d
        else:
            full = d * h * self.head_dim * (3 if self.attention_gate else 2) + 2 * d * self.kv_heads * self.head_dim
        if self.attention_bias:
            full += (h + 2 * self.kv_heads) * self.head_dim
        keys = self.linear_key_heads * self.linear_key_dim
        values = self.linear_value_heads * self.linear_value_dim
        # query, key, value and gate in; a decay and a rate per value head; a short convolution; out
        linear = d * (2 * keys + 2 * values + 2 * self.linear_value_heads) + values * d
        linear += self.linear_conv * (2 * keys + values)
        norms = (2 * self.layers + 1) * d
        return (self.layers - self.linear_layers) * full + self.linear_layers * linear + norms

    def _ffn_by_shape(self) -> int:
        dense = (self.layers - self.moe_layers) * self.ffn_matrices * self.hidden * self.ffn
        shared = self.ffn_matrices * self.hidden * self.shared_ffn + self.hidden * self.experts
        return dense + self.moe_layers * (self.experts * self.expert_parameters + shared)

    def _state_by_shape(self) -> int:
        cells = self.linear_value_heads * self.linear_key_dim * self.linear_value_dim
        return self.linear_layers * cells * _STATE_BYTES

    # ---------------------------------------------------------------- weights

    @property
    def dtype(self) -> str:
        """The weights' precision, "native" resolved."""
        return self.native_dtype if self.weights_dtype == "native" else self.weights_dtype

    @property
    def compute_dtype(self) -> str:
        """The arithmetic that the weights ask for: bf16 for int4, fp4 for mxfp4 and nvfp4."""
        return {"int4": "bf16", "mxfp4": "fp4", "nvfp4": "fp4"}.get(self.dtype, self.dtype)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(block.bytes for block in self._weight_blocks)

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert of one layer."""
        return self._bytes(self.expert_parameters, "expert")

    @property
    def ffn_bytes(self) -> int:
        """Bytes of all feed-forward weights, every expert included."""
        return sum(block.bytes for block in self._weight_blocks if block.operation == FFN)

    @property
    def embedding_row_bytes(self) -> int:
        """Bytes that one token reads of the input embedding: its row."""
        return self._bytes(self.hidden, "end")

    def weight_blocks(self) -> list[WeightBlock]:
        """Return the weights as blocks: (label, operation, bytes, is_expert).

        Each layer gives "layer i attention", "layer i ffn" (dense weights, shared experts and
        router; left out when there are none) and "layer i experts" (all of them; a step reads the
        share :meth:`ffn_read_bytes` gives). "lm_head" belongs to attention. "embedding" is there
        when not tied: a token reads one row of it (`embedding_row_bytes`), never the whole. The
        sizes add up to `weight_bytes` exactly.
        """
        return list(self._weight_blocks)

    @cached_property
    def _weight_blocks(self) -> tuple[WeightBlock, ...]:
        blocks = []
        if not self.tied:
            blocks.append(WeightBlock("embedding", ATTENTION, self._bytes(self.embedding_parameters, "end"), False))
        dense = self.ffn_matrices * self.hidden * self.ffn
        dense_layers = self.layers - self.moe_layers
        all_experts = self.experts * self.expert_parameters
        plain = self.ffn_parameters - self.moe_layers * all_experts
        if self.moe_layers:
            # dense layers at their shape, what is left shared by the layers with experts
            dense = min(dense, plain // max(dense_layers, 1))
            shared = _split(plain - dense * dense_layers, self.moe_layers)
        else:
            shared = _split(plain, self.layers)
        attention = _split(self.attention_parameters, self.layers)
        parts = iter(shared)
        for layer in range(self.layers):
            blocks.append(
                WeightBlock(f"layer {layer} attention", ATTENTION, self._bytes(attention[layer], "layer"), False)
            )
            moe = self.is_moe_layer(layer)
            own = dense if self.moe_layers and not moe else next(parts)
            if own:
                blocks.append(WeightBlock(f"layer {layer} ffn", FFN, self._bytes(own, "layer"), False))
            if moe:
                blocks.append(WeightBlock(f"layer {layer} experts", FFN, self._bytes(all_experts, "expert"), True))
        head = self.embedding_parameters if self.tied else self.head_parameters
        blocks.append(WeightBlock("lm_head", ATTENTION, self._bytes(head, "end"), False))
        return tuple(blocks)

    def _bytes(self, parameters: int, part: str) -> int:
        dtype = self.dtype
        if dtype in _FOUR_BIT and part != "expert" and (self.experts or part == "end"):
            dtype = "bf16"
        return _sized(parameters, dtype)

    def experts_touched(self, tokens: float) -> float:
        """Return how many distinct experts of a layer `tokens` tokens use.

        E (1 - (1 - k/E)^tokens): experts are taken as equally likely and tokens as independent.
        """
        if not self.experts or tokens <= 0:
            return 0.0
        missed: float = (1.0 - self.experts_per_token / self.experts) ** tokens
        return self.experts * (1.0 - missed)

    def ffn_read_bytes(self, tokens: float) -> int:
        """Feed-forward bytes that a step of `tokens` tokens reads: each weight touched, once."""
        if tokens <= 0:
            return 0
        idle = self.experts - self.experts_touched(tokens)
        return self.ffn_bytes - round(idle * self.expert_bytes * self.moe_layers)

    # ---------------------------------------------------------------- KV and state

    @property
    def kv_layer_bytes(self) -> int:
        """Bytes that one token's KV takes in one layer."""
        if self.kv_lora_rank:
            return _sized(self.kv_lora_rank + self.qk_rope_head_dim, self.kv_dtype)
        return _sized(2 * self.kv_heads * self.head_dim, self.kv_dtype)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that the stored KV grows by for each token: the global layers'."""
        return self.global_layers * self.kv_layer_bytes

    @property
    def kv_fixed_bytes(self) -> int:
        """Bytes that a sequence's window layers hold at most."""
        return self.local_layers * self.window * self.kv_layer_bytes

    def kv_stored_bytes(self, tokens: int) -> int:
        """Bytes of KV that a sequence of `tokens` tokens stores, windows capped."""
        return self.kv_bytes_per_token * tokens + self.local_layers * self.kv_layer_bytes * min(tokens, self.window)

    def kv_read_bytes(self, context: int) -> int:
        """Bytes of KV that one new token reads; windows and sparse layers are capped."""
        rows = (self.global_layers - self.sparse_layers) * context
        rows += self.sparse_layers * min(context, self.sparse_tokens)
        rows += self.local_layers * min(context, self.window)
        return rows * self.kv_layer_bytes

    def sequence_bytes(self, tokens: int) -> int:
        """Bytes that a sequence of `tokens` tokens holds in all: KV and linear layers' state."""
        return self.kv_stored_bytes(tokens) + self.state_bytes

    # ---------------------------------------------------------------- work

    def flops_per_token(self, operation: int | str) -> float:
        """Return the FLOPs of one generated token through an operation's weights.

        2 for each active weight, the LM head with attention. `operation` is a name or its code.

        Attention over the context comes on top: :meth:`attention_flops`.
        """
        if operation in (ATTENTION, "attention"):
            return 2.0 * (self.attention_parameters + self.head_parameters)
        if operation in (FFN, "ffn"):
            return 2.0 * self.ffn_parameters_active
        raise UnknownNameError(operation, ("attention", "ffn"), "operation")

    def attention_flops(self, new: int, context: int, *, absorbed: bool | None = None) -> float:
        """FLOPs of `new` tokens attending to `context` earlier ones and to each other.

        4 L heads head_dim new (context + new/2), each window or sparse layer capped at what it
        attends to. It adds up: two chunks cost what the whole does. `absorbed` says whether latent
        attention works on the compressed KV, as decoding does (the default for one new token); it
        changes nothing for others.
        """
        if absorbed is None:
            absorbed = new == 1
        if not self.kv_lora_rank:
            pair = 4.0 * self.heads * self.head_dim
        elif absorbed:
            pair = 2.0 * self.heads * (2 * self.kv_lora_rank + self.qk_rope_head_dim)
        else:
            pair = 2.0 * self.heads * (self.qk_nope_head_dim + self.qk_rope_head_dim + self.head_dim)
        end = context + new
        pairs = (self.global_layers - self.sparse_layers) * (_pairs(end, 0) - _pairs(context, 0))
        if self.sparse_layers:
            pairs += self.sparse_layers * (_pairs(end, self.sparse_tokens) - _pairs(context, self.sparse_tokens))
        if self.local_layers:
            pairs += self.local_layers * (_pairs(end, self.window) - _pairs(context, self.window))
        return pair * pairs

    def prefill_flops(self, start: int, end: int) -> tuple[float, float]:
        """FLOPs (attention, ffn) of computing the tokens of positions `start` to `end` of a prompt.

        The LM head is left out: a prompt needs it once, and the first output token's step counts
        it. Chunks add up.
        """
        new = max(end - start, 0)
        attention = 2.0 * self.attention_parameters * new + self.attention_flops(new, start, absorbed=False)
        return attention, 2.0 * self.ffn_parameters_active * new

    # ---------------------------------------------------------------- making one

    @classmethod
    def load(cls, model: str | os.PathLike[str] | Mapping[str, Any] | Model) -> Model:
        """Return the model that a name, a path, a dict or an object stands for.

        A name is a preset's or an entry point's of the group kvsim.models; a path is a TOML file's,
        a config.json's or its folder's; a dict is a config.json's or what :meth:`to_dict` gave.

        Raises
        ------
        UnknownNameError
            No preset of that name.
        ModelError
            A file that cannot be read or used.
        """
        if isinstance(model, Model):
            return model
        if isinstance(model, Mapping):
            config = "model_type" in model or "text_config" in model
            return cls.from_config(model) if config else cls.from_dict(model)
        if not isinstance(model, str | os.PathLike):
            raise ModelError(f"model: found {shown(model)}, expected a name, a path or a Model")
        if _toml.is_outside_name(model, "models"):
            return cls.load(_toml.outside("models", "model").get(str(model)))
        text = os.fspath(model)
        path = Path(text)
        if text.endswith(".json") or (("/" in text or isinstance(model, os.PathLike)) and path.is_dir()):
            return cls.from_config(path)
        return cls._from_toml(path if isinstance(model, os.PathLike) else text)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the presets."""
        return _toml.preset_names("models")

    @classmethod
    def from_config(cls, config: str | os.PathLike[str] | Mapping[str, Any], *, name: str = "") -> Model:
        """Read a Hugging Face config.json, given as a path, its folder, or a dict.

        Raises
        ------
        ModelError
            A key that is missing or makes no sense, or a family whose shape is not known.
        """
        from kvsim._hf_config import read_config

        return read_config(config, name=name)

    @classmethod
    def _from_toml(cls, name: str | Path) -> Model:
        document = _toml.read_document(
            name, "models", what="model", merge=_merge, leaves=lambda t: list(t), error=ModelError
        )
        return cls._from_values(document.values, place=document.place, sources=document.sources)

    @classmethod
    def _from_values(cls, values: Mapping[str, Any], *, place: str, sources: Mapping[str, Source]) -> Model:
        known = [f.name for f in dataclasses.fields(cls) if f.name != "sources"]
        for key in values:
            if key not in known:
                raise UnknownNameError(key, known, "key of a model", place=place)
        given = dict(values)
        given.setdefault("name", Path(place).name.removesuffix(".toml"))
        for f in dataclasses.fields(cls):
            required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
            if required and f.name not in given:
                raise ModelError(f"{place}: {f.name}: found nothing, expected a value")
        try:
            return cls(**given, sources=dict(sources))
        except ModelError as error:
            raise ModelError(f"{place}: {error}") from None

    def with_(self, **changes: Any) -> Model:
        """Return a copy with some fields changed; totals that go stale are worked out again."""
        known = [f.name for f in dataclasses.fields(self)]
        for key in changes:
            if key not in known:
                raise UnknownNameError(key, known, "field of a model")
        changes = dict.fromkeys(_stale(changes), 0) | changes
        given = {key: Source("set by hand", "given") for key in changes if key != "sources"}
        changes.setdefault("sources", dict(self.sources) | given)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return every field as plain Python, for :meth:`from_dict`."""
        out = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "sources"}
        out["sources"] = {path: list(source) for path, source in self.sources.items()}
        return out

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Model:
        """Make a model of what :meth:`to_dict` gave."""
        rest = dict(values)
        sources = {path: Source(*pair) for path, pair in rest.pop("sources", {}).items()}
        return cls._from_values(rest, place=f"model {rest.get('name', '')}".strip(), sources=sources)

    def source(self, key: str) -> Source | None:
        """Return where a field's number comes from, or None."""
        whole = self.sources.get("*")
        if key in _DERIVED and key not in self.sources and whole is not None:
            return Source("arithmetic on the shape", whole.quality)
        return find_source(self.sources, key)

    def doubtful(self) -> list[tuple[str, Source]]:
        """Return the fields whose numbers are estimates or from memory, with their sources."""
        out = []
        for f in dataclasses.fields(self):
            if f.name in (*_TEXTS, "sources") or getattr(self, f.name) == f.default:
                continue
            source = self.source(f.name)
            if source is not None and source.quality in DOUBTFUL:
                out.append((f.name, source))
        return out

    def __repr__(self) -> str:
        # what the shape or the defaults say anyway is left out, so that the text evaluates back and
        # stays short
        parts = []
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.repr and value != f.default and not (f.name == "title" and value == self.name):
                parts.append(f"{f.name}={value!r}")
        return f"Model({', '.join(parts)})"

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def _merge(below: dict[str, Any], above: dict[str, Any], place: str) -> dict[str, Any]:
    gone = _stale(above) | {"name", "title"}
    return {key: value for key, value in below.items() if key not in gone} | above


def _stale(changes: Mapping[str, Any]) -> set[str]:
    """Return the derived fields that no longer hold once these fields change."""
    if set(changes) <= _NOT_SHAPE:
        return set()
    # an expert's weights may be stated because they do not follow from the shape (experts in a
    # latent space)
    expert = set(changes) & {"hidden", "moe_ffn", "ffn_matrices"}
    return set(_DERIVED) if expert else set(_DERIVED) - {"expert_parameters"}


def _sized(elements: int, dtype: str) -> int:
    bits, scale = _BITS[dtype]
    return -(-elements * bits // (8 * scale))


def _split(total: int, parts: int) -> list[int]:
    # whole numbers that differ by at most 1; the remainder goes to the first ones
    each, rest = divmod(total, parts)
    return [each + (part < rest) for part in range(parts)]


def _pairs(tokens: int, window: int) -> float:
    """Token pairs of the first `tokens` tokens when each attends to the last `window` (0: all)."""
    if not window or tokens <= window:
        return 0.5 * tokens * tokens
    return 0.5 * window * window + float(window) * (tokens - window)
