"""Small random gpt-oss checkpoints, in every form that the loader reads."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

Layout = Literal["hugging_face", "original"]
Experts = Literal["mxfp4", "bfloat16"]


@dataclass(frozen=True)
class Shape:
    """Sizes of a random model; the defaults differ from one another wherever they may."""

    num_layers: int = 4
    num_experts: int = 6
    num_experts_per_token: int = 3
    hidden_size: int = 96
    intermediate_size: int = 64
    num_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 20
    vocab_size: int = 211
    window: int = 128
    # The token ids of a compact vocabulary's rows, -1 for the row of unknown tokens; empty for a plain vocabulary.
    vocabulary_rows: tuple[int, ...] = ()
    # Replaces what config.json would say.
    overrides: dict[str, Any] = field(default_factory=dict)


# As small as the Triton runner's kernels, and the interpreter's patience, go together.
TINY = Shape(
    num_layers=2,
    num_experts=4,
    num_experts_per_token=2,
    hidden_size=32,
    intermediate_size=32,
    num_heads=4,
    head_dim=16,
    vocab_size=83,
    window=9,
)


def hugging_face_config(shape: Shape) -> dict[str, Any]:
    config: dict[str, Any] = {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "attention_bias": True,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "layer_types": ["full_attention" if i % 2 else "sliding_attention" for i in range(shape.num_layers)],
        "max_position_embeddings": 131072,
        "num_attention_heads": shape.num_heads,
        "num_experts_per_tok": shape.num_experts_per_token,
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_kv_heads,
        "num_local_experts": shape.num_experts,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150000,
        "sliding_window": shape.window,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "vocab_size": shape.vocab_size,
    }
    if shape.vocabulary_rows:
        config["chorus_compact_vocabulary"] = True
    return config | shape.overrides


def original_config(shape: Shape) -> dict[str, Any]:
    return {
        "num_hidden_layers": shape.num_layers,
        "num_experts": shape.num_experts,
        "experts_per_token": shape.num_experts_per_token,
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "swiglu_limit": 7.0,
        "head_dim": shape.head_dim,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "sliding_window": shape.window,
        "initial_context_length": 4096,
        "rope_theta": 150000,
        "rope_scaling_factor": 32.0,
        "rope_ntk_alpha": 1,
        "rope_ntk_beta": 32,
    } | shape.overrides


def random_tensors(shape: Shape, experts: Experts = "mxfp4", seed: int = 0) -> dict[str, Tensor]:
    """A model's tensors in the Hugging Face layout."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int, std: float, mean: float = 0.0) -> Tensor:
        return (torch.randn(*size, generator=generator) * std + mean).bfloat16()

    def byte(*size: int, low: int = 0, high: int = 256) -> Tensor:
        return torch.randint(low, high, size, generator=generator, dtype=torch.uint8)

    hidden, inner, count = shape.hidden_size, shape.intermediate_size, shape.num_experts
    num_rows = len(shape.vocabulary_rows) or shape.vocab_size
    tensors = {
        "model.embed_tokens.weight": normal(num_rows, hidden, std=1.0),
        "lm_head.weight": normal(num_rows, hidden, std=2.0 * hidden**-0.5),
        "model.norm.weight": normal(hidden, std=0.2, mean=1.0),
    }
    if shape.vocabulary_rows:
        tensors["vocabulary_rows"] = torch.tensor(shape.vocabulary_rows, dtype=torch.int32)
    for index in range(shape.num_layers):
        layer: dict[str, Tensor] = {
            "input_layernorm.weight": normal(hidden, std=0.2, mean=1.0),
            "post_attention_layernorm.weight": normal(hidden, std=0.2, mean=1.0),
            "self_attn.sinks": normal(shape.num_heads, std=1.0),
            "mlp.router.weight": normal(count, hidden, std=hidden**-0.5),
            "mlp.router.bias": normal(count, std=0.3),
        }
        sizes = {"q": shape.num_heads, "k": shape.num_kv_heads, "v": shape.num_kv_heads}
        for name, heads in sizes.items():
            layer[f"self_attn.{name}_proj.weight"] = normal(heads * shape.head_dim, hidden, std=1.5 * hidden**-0.5)
            layer[f"self_attn.{name}_proj.bias"] = normal(heads * shape.head_dim, std=0.2)
        width = shape.num_heads * shape.head_dim
        layer["self_attn.o_proj.weight"] = normal(hidden, width, std=width**-0.5)
        layer["self_attn.o_proj.bias"] = normal(hidden, std=0.2)
        for name, rows, columns in (("gate_up", 2 * inner, hidden), ("down", hidden, inner)):
            prefix = f"mlp.experts.{name}_proj"
            layer[f"{prefix}_bias"] = normal(count, rows, std=0.2)
            if experts == "mxfp4":
                layer[f"{prefix}_blocks"] = byte(count, rows, columns // 32, 16)
                layer[f"{prefix}_scales"] = byte(count, rows, columns // 32, low=118, high=122)
            else:
                layer[prefix] = normal(count, columns, rows, std=columns**-0.5)
        tensors |= {f"model.layers.{index}.{name}": tensor for name, tensor in layer.items()}
    return tensors


def to_original(tensors: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """The same tensors under OpenAI's names and in its forms."""
    result = {
        "embedding.weight": tensors["model.embed_tokens.weight"],
        "unembedding.weight": tensors["lm_head.weight"],
        "norm.scale": tensors["model.norm.weight"],
    }
    renamed = {
        "input_layernorm.weight": "attn.norm.scale",
        "post_attention_layernorm.weight": "mlp.norm.scale",
        "self_attn.sinks": "attn.sinks",
        "self_attn.o_proj.weight": "attn.out.weight",
        "self_attn.o_proj.bias": "attn.out.bias",
        "mlp.router.weight": "mlp.gate.weight",
        "mlp.router.bias": "mlp.gate.bias",
    }
    for i in range(num_layers):
        source, target = f"model.layers.{i}.", f"block.{i}."
        for name, original in renamed.items():
            result[target + original] = tensors[source + name]
        for kind in ("weight", "bias"):
            parts = [tensors[f"{source}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            result[f"{target}attn.qkv.{kind}"] = torch.cat(parts)
        for name, number in (("gate_up", 1), ("down", 2)):
            experts, matrix = f"{source}mlp.experts.{name}_proj", f"{target}mlp.mlp{number}"
            result[f"{matrix}_bias"] = tensors[f"{experts}_bias"]
            if experts in tensors:
                result[f"{matrix}_weight"] = tensors[experts].transpose(1, 2).contiguous()
            else:
                result[f"{matrix}_weight.blocks"] = tensors[f"{experts}_blocks"]
                result[f"{matrix}_weight.scales"] = tensors[f"{experts}_scales"]
    return result


def write_checkpoint(
    folder: Path,
    shape: Shape | None = None,
    *,
    layout: Layout = "hugging_face",
    experts: Experts = "mxfp4",
    num_files: int = 1,
    seed: int = 0,
) -> Path:
    """Writes a checkpoint into the folder and returns it. More than one file makes a sharded index (Hugging Face)."""
    shape = shape or Shape()
    tensors = random_tensors(shape, experts, seed)
    if layout == "original":
        tensors = to_original(tensors, shape.num_layers)
    write_tensors(folder, tensors, num_files=num_files, index=layout == "hugging_face" and num_files > 1)
    config = original_config(shape) if layout == "original" else hugging_face_config(shape)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_tensors(folder: Path, tensors: dict[str, Tensor], *, num_files: int = 1, index: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number in range(num_files):
        file = "model.safetensors" if num_files == 1 else f"model-{number + 1:05d}-of-{num_files:05d}.safetensors"
        mine = names[number::num_files]
        save_file({name: tensors[name] for name in mine}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(mine, file)
    if index:
        text = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
