"""The same model in Hugging Face Transformers, in float32: what ours is compared with."""

import torch
from tests.support.checkpoints import Shape, hugging_face_config
from torch import Tensor
from transformers import GptOssConfig, GptOssForCausalLM

from chorus_kernels.mxfp4 import unpack_mxfp4


def transformers_twin(shape: Shape, tensors: dict[str, Tensor]) -> GptOssForCausalLM:
    """A GptOssForCausalLM with these tensors (Hugging Face layout), its experts unpacked."""
    config = hugging_face_config(shape)
    model = GptOssForCausalLM._from_config(GptOssConfig(**config), attn_implementation="eager", dtype=torch.float32)
    state = {}
    for name, tensor in tensors.items():
        if name.endswith("_scales"):
            continue
        if name.endswith("_blocks"):
            base = name.removesuffix("_blocks")
            state[base] = unpack_mxfp4(tensor, tensors[f"{base}_scales"]).transpose(1, 2)
        else:
            state[name] = tensor.float()
    model.load_state_dict(state, strict=True)
    return model.eval()
