"""What each checkpoint layout calls its tensors."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MatrixNames:
    """An expert matrix: either packed (blocks and scales) or floating point."""

    blocks: str
    scales: str
    floating: str
    bias: str


@dataclass(frozen=True, slots=True)
class Layout:
    """Tensor names of one layout; those below `layer` are relative to it."""

    embedding: str
    head: str
    final_norm: str
    layer: str
    attention_norm: str
    # Queries, keys and values: three projections, or one that holds all in this order.
    qkv: tuple[str, ...]
    sinks: str
    out: str
    mlp_norm: str
    router: str
    gate_up: MatrixNames
    down: MatrixNames
    # Floating-point expert matrices are stored [E, in, out], not [E, out, in].
    experts_transposed: bool


HUGGING_FACE = Layout(
    embedding="model.embed_tokens.weight",
    head="lm_head.weight",
    final_norm="model.norm.weight",
    layer="model.layers.{}.",
    attention_norm="input_layernorm.weight",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    sinks="self_attn.sinks",
    out="self_attn.o_proj",
    mlp_norm="post_attention_layernorm.weight",
    router="mlp.router",
    gate_up=MatrixNames(
        blocks="mlp.experts.gate_up_proj_blocks",
        scales="mlp.experts.gate_up_proj_scales",
        floating="mlp.experts.gate_up_proj",
        bias="mlp.experts.gate_up_proj_bias",
    ),
    down=MatrixNames(
        blocks="mlp.experts.down_proj_blocks",
        scales="mlp.experts.down_proj_scales",
        floating="mlp.experts.down_proj",
        bias="mlp.experts.down_proj_bias",
    ),
    experts_transposed=True,
)

ORIGINAL = Layout(
    embedding="embedding.weight",
    head="unembedding.weight",
    final_norm="norm.scale",
    layer="block.{}.",
    attention_norm="attn.norm.scale",
    qkv=("attn.qkv",),
    sinks="attn.sinks",
    out="attn.out",
    mlp_norm="mlp.norm.scale",
    router="mlp.gate",
    gate_up=MatrixNames(
        blocks="mlp.mlp1_weight.blocks",
        scales="mlp.mlp1_weight.scales",
        floating="mlp.mlp1_weight",
        bias="mlp.mlp1_bias",
    ),
    down=MatrixNames(
        blocks="mlp.mlp2_weight.blocks",
        scales="mlp.mlp2_weight.scales",
        floating="mlp.mlp2_weight",
        bias="mlp.mlp2_bias",
    ),
    experts_transposed=False,
)
