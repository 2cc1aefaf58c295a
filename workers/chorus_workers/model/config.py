"""The shape of a gpt-oss model, read from either layout's config.json."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from chorus_workers.model.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding with YaRN scaling; the fields are `yarn_inverse_frequencies`' arguments."""

    theta: float
    factor: float
    original_max_position: int
    beta_fast: float
    beta_slow: float
    truncate: bool


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and constants of a model; counts are of the whole model, not of a shard."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_experts: int
    num_experts_per_token: int
    # One entry per layer: the window's width in tokens, the query among them; None for full attention.
    windows: tuple[int | None, ...]
    rms_norm_eps: float
    swiglu_alpha: float
    swiglu_limit: float
    max_position: int
    rope: RopeConfig
    # Only some vocabulary rows are stored; the tensor `vocabulary_rows` names their token ids.
    compact_vocabulary: bool
    # The output head is the embedding matrix.
    tied_embeddings: bool

    @property
    def num_layers(self) -> int:
        return len(self.windows)

    @property
    def window(self) -> int:
        """The window of the layers that have one; 0 where none has."""
        return next((window for window in self.windows if window is not None), 0)


def read_config(folder: Path) -> ModelConfig:
    """Reads `folder/config.json`, in the Hugging Face layout ("model_type": "gpt_oss") or OpenAI's.

    Errors: CheckpointError naming the file, and the field at fault.
    """
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(path, "the file is missing") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(path, "the file is not readable as JSON") from error
    if not isinstance(raw, dict):
        raise CheckpointError(path, "the file must hold a JSON object")
    fields = _Fields(path, raw)
    config = _from_hugging_face(fields) if "model_type" in raw else _from_original(fields)
    _check(path, config)
    return config


class _Fields:
    """Typed access to a JSON object's fields, with errors that name the file and the field."""

    def __init__(self, path: Path, raw: Mapping[str, object], prefix: str = "") -> None:
        self.path, self.raw, self.prefix = path, raw, prefix

    def fail(self, name: str, message: str) -> CheckpointError:
        return CheckpointError(self.path, f"{self.prefix}{name} {message}")

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.raw.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.fail(name, f"must be a positive integer, not {value!r}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.raw.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.fail(name, f"must be a positive number, not {value!r}")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        value = self.raw.get(name, default)
        if not isinstance(value, bool):
            raise self.fail(name, f"must be true or false, not {value!r}")
        return value

    def must_be(self, name: str, expected: object) -> None:
        """Refuses a model that differs from gpt-oss in a way that isn't implemented."""
        if self.raw.get(name, expected) != expected:
            raise self.fail(name, f"must be {expected!r}, not {self.raw[name]!r}")

    def child(self, name: str) -> "_Fields":
        value = self.raw.get(name)
        if not isinstance(value, dict):
            raise self.fail(name, "must be an object")
        return _Fields(self.path, value, f"{self.prefix}{name}.")


def _from_hugging_face(fields: _Fields) -> ModelConfig:
    for name, expected in (("model_type", "gpt_oss"), ("attention_bias", True), ("hidden_act", "silu")):
        fields.must_be(name, expected)
    return ModelConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size"),
        intermediate_size=fields.integer("intermediate_size"),
        num_heads=fields.integer("num_attention_heads"),
        num_kv_heads=fields.integer("num_key_value_heads"),
        head_dim=fields.integer("head_dim"),
        num_experts=fields.integer("num_local_experts"),
        num_experts_per_token=fields.integer("num_experts_per_tok"),
        windows=_windows(fields),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-5),
        swiglu_alpha=fields.number("swiglu_alpha", 1.702),
        swiglu_limit=fields.number("swiglu_limit", 7.0),
        max_position=fields.integer("max_position_embeddings"),
        rope=_rope(fields),
        compact_vocabulary=fields.boolean("chorus_compact_vocabulary", False),
        tied_embeddings=fields.boolean("tie_word_embeddings", False),
    )


def _windows(fields: _Fields) -> tuple[int | None, ...]:
    num_layers = fields.integer("num_hidden_layers")
    default = ["full_attention" if i % 2 else "sliding_attention" for i in range(num_layers)]
    types = fields.raw.get("layer_types") or default
    if not isinstance(types, list) or len(types) != num_layers:
        raise fields.fail("layer_types", f"must have num_hidden_layers = {num_layers} entries")
    for kind in types:
        if kind not in ("sliding_attention", "full_attention"):
            raise fields.fail("layer_types", f"must hold sliding_attention and full_attention only, not {kind!r}")
    return tuple(fields.integer("sliding_window") if kind == "sliding_attention" else None for kind in types)


def _rope(fields: _Fields) -> RopeConfig:
    # Transformers 5 writes rope_parameters, with theta in it; earlier ones rope_scaling, with theta beside it.
    rope = fields.child("rope_parameters" if "rope_parameters" in fields.raw else "rope_scaling")
    rope.must_be("rope_type", "yarn")
    for name in ("attention_factor", "mscale", "mscale_all_dim"):
        rope.must_be(name, None)
    return RopeConfig(
        theta=(rope if "rope_theta" in rope.raw else fields).number("rope_theta", 150000.0),
        factor=rope.number("factor"),
        original_max_position=rope.integer("original_max_position_embeddings"),
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        truncate=rope.boolean("truncate", True),
    )


def _from_original(fields: _Fields) -> ModelConfig:
    num_layers = fields.integer("num_hidden_layers")
    window = fields.integer("sliding_window")
    original = fields.integer("initial_context_length")
    factor = fields.number("rope_scaling_factor")
    return ModelConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size"),
        intermediate_size=fields.integer("intermediate_size"),
        num_heads=fields.integer("num_attention_heads"),
        num_kv_heads=fields.integer("num_key_value_heads"),
        head_dim=fields.integer("head_dim"),
        num_experts=fields.integer("num_experts"),
        num_experts_per_token=fields.integer("experts_per_token", 4),
        windows=tuple(None if i % 2 else window for i in range(num_layers)),
        rms_norm_eps=1e-5,
        swiglu_alpha=1.702,
        swiglu_limit=fields.number("swiglu_limit", 7.0),
        max_position=int(original * factor),
        rope=RopeConfig(
            theta=fields.number("rope_theta"),
            factor=factor,
            original_max_position=original,
            beta_fast=fields.number("rope_ntk_beta", 32.0),
            beta_slow=fields.number("rope_ntk_alpha", 1.0),
            truncate=False,
        ),
        compact_vocabulary=False,
        tied_embeddings=False,
    )


def _check(path: Path, config: ModelConfig) -> None:
    if config.num_heads % config.num_kv_heads:
        raise CheckpointError(
            path, f"num_attention_heads {config.num_heads} must be a multiple of {config.num_kv_heads} KV heads"
        )
    if config.head_dim % 2:
        raise CheckpointError(path, f"head_dim must be even, not {config.head_dim}")
    if config.num_experts_per_token > config.num_experts:
        raise CheckpointError(
            path, f"{config.num_experts_per_token} experts per token, but the model has {config.num_experts}"
        )
