"""Which GPU the Triton runner runs on, and whether a model fits."""

import torch

# bfloat16 on tensor cores, and asynchronous copies: A100 and newer.
_MIN_CAPABILITY = (8, 0)
_GIB = 1 << 30


def choose_device() -> torch.device:
    """The GPU that this process sees first. Errors: ValueError, if it sees none, or one that isn't supported."""
    if not torch.cuda.is_available():
        raise ValueError("runner 'triton' needs a GPU, and this process sees none; 'reference' runs on CPUs")
    device = torch.device("cuda", torch.cuda.current_device())
    check_capability(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))
    return device


def check_capability(name: str, capability: tuple[int, int]) -> None:
    """Errors: ValueError, if kernels can't be compiled for the GPU."""
    if capability < _MIN_CAPABILITY:
        had, needed = (".".join(map(str, pair)) for pair in (capability, _MIN_CAPABILITY))
        raise ValueError(
            f"{name} has compute capability {had}; runner 'triton' needs {needed} or more (A100, H100, ...)"
        )


def check_memory(weight_bytes: int, free_bytes: int) -> None:
    """Errors: ValueError, if the weights alone don't fit."""
    if weight_bytes > free_bytes:
        raise ValueError(
            f"the weights take {weight_bytes / _GIB:.1f} GiB, and the GPU has {free_bytes / _GIB:.1f} GiB free: "
            "stop what else runs on it, or take a smaller model"
        )


def check_kv_memory(kv_bytes: int, free_bytes: int) -> None:
    """Errors: ValueError, if the KV that was asked for doesn't fit beside the weights."""
    if kv_bytes > free_bytes:
        raise ValueError(
            f"num_blocks and max_num_seqs ask for {kv_bytes / _GIB:.1f} GiB of KV, and the GPU has "
            f"{free_bytes / _GIB:.1f} GiB free beside the weights: lower them, or leave num_blocks open"
        )
