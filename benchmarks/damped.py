"""A checkpoint in which layers add less than they did.

Random weights are chaotic: what any rounding changes, experts chosen otherwise make into another answer. Where each
layer adds 2^-K of what it did, this takes longer, and comparisons say something of the arithmetic.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_OUTPUTS = ("self_attn.o_proj.weight", "self_attn.o_proj.bias", "mlp.experts.down_proj_bias")
_SCALES = "mlp.experts.down_proj_scales"


def write_damped(source: Path, target: Path, exponent: int) -> None:
    """Copies a checkpoint in the Hugging Face layout with MXFP4 experts, layers' outputs times 2^-exponent, exactly but
    for the smallest numbers of bfloat16. Errors: ValueError, where a scale has no room, or nothing is there to damp."""
    found = False
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.suffix != ".safetensors":
            if path.is_file():
                shutil.copy(path, target / path.name)
            continue
        tensors = load_file(path)
        for name in tensors:
            if name.endswith((*_OUTPUTS, _SCALES)):
                tensors[name], found = _damped(name, tensors[name], exponent), True
        save_file(tensors, target / path.name, metadata={"format": "pt"})
    if not found:
        raise ValueError(f"{source} has none of {json.dumps([*_OUTPUTS, _SCALES])}")


def _damped(name: str, tensor: Tensor, exponent: int) -> Tensor:
    if not name.endswith(_SCALES):
        return tensor * 2.0**-exponent
    if bool((tensor < exponent).any()):
        raise ValueError(f"{name} has a scale below {exponent}")
    return (tensor.int() - exponent).to(torch.uint8)
