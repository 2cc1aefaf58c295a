"""The demo model's shape: gpt-oss's architecture, small. Written to config.json in Hugging Face's terms."""

from dataclasses import dataclass
from typing import Any

import chorus_vocabulary as vocabulary


@dataclass(frozen=True, slots=True)
class ModelConfig:
    hidden_size: int = 192
    intermediate_size: int = 192
    num_layers: int = 6
    num_heads: int = 8
    num_kv_heads: int = 2
    head_dim: int = 32
    num_experts: int = 8
    experts_per_token: int = 4
    sliding_window: int = 128
    rope_theta: float = 150_000.0
    rope_factor: float = 32.0
    rope_original_length: int = 4096
    rms_norm_eps: float = 1e-5
    swiglu_alpha: float = 1.702
    swiglu_limit: float = 7.0

    def layer_types(self) -> list[str]:
        return ["full_attention" if i % 2 else "sliding_attention" for i in range(self.num_layers)]

    def to_hugging_face(self) -> dict[str, Any]:
        return {
            "architectures": ["GptOssForCausalLM"],
            "attention_bias": True,
            "attention_dropout": 0.0,
            "chorus_compact_vocabulary": True,
            "eos_token_id": list(vocabulary.STOP_TOKEN_IDS),
            "experts_per_token": self.experts_per_token,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initial_context_length": self.rope_original_length,
            "intermediate_size": self.intermediate_size,
            "layer_types": self.layer_types(),
            "max_position_embeddings": self.rope_original_length,
            "model_type": "gpt_oss",
            "num_attention_heads": self.num_heads,
            "num_experts_per_tok": self.experts_per_token,
            "num_hidden_layers": self.num_layers,
            "num_key_value_heads": self.num_kv_heads,
            "num_local_experts": self.num_experts,
            "pad_token_id": vocabulary.ENDOFTEXT,
            "quantization_config": {
                "modules_to_not_convert": [
                    "model.layers.*.self_attn",
                    "model.layers.*.mlp.router",
                    "model.embed_tokens",
                    "lm_head",
                ],
                "quant_method": "mxfp4",
            },
            "rms_norm_eps": self.rms_norm_eps,
            "rope_scaling": {
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "factor": self.rope_factor,
                "original_max_position_embeddings": self.rope_original_length,
                "rope_type": "yarn",
                "truncate": False,
            },
            "rope_theta": self.rope_theta,
            "sliding_window": self.sliding_window,
            "swiglu_limit": self.swiglu_limit,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": vocabulary.VOCABULARY_SIZE,
        }
