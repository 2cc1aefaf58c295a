"""Which GPU the Triton runner runs on."""

import torch

from chorus_workers.config import KvCacheDtype

# bfloat16 on tensor cores, and asynchronous copies: A100 and newer.
_MIN_CAPABILITY = (8, 0)
# Conversions from and to float8_e4m3fn, as far as Triton has them.
_MIN_FP8_CAPABILITY = (8, 9)


def choose_device(kv_cache_dtype: KvCacheDtype = "auto") -> torch.device:
    """The GPU that this process sees first. Errors: ValueError, if it sees none, or one that isn't supported."""
    if not torch.cuda.is_available():
        raise ValueError("runner 'triton' needs a GPU, and this process sees none; 'reference' runs on CPUs")
    device = torch.device("cuda", torch.cuda.current_device())
    check_capability(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device), kv_cache_dtype)
    return device


def check_capability(name: str, capability: tuple[int, int], kv_cache_dtype: KvCacheDtype = "auto") -> None:
    """Errors: ValueError, if kernels can't be compiled for the GPU, or not with such a KV memory."""
    has = f"{name} has compute capability {_number(capability)}"
    if capability < _MIN_CAPABILITY:
        raise ValueError(f"{has}; runner 'triton' needs {_number(_MIN_CAPABILITY)} or more (A100, H100, ...)")
    if kv_cache_dtype == "fp8_e4m3" and capability < _MIN_FP8_CAPABILITY:
        needed = f"needs {_number(_MIN_FP8_CAPABILITY)} or more (L40S, H100, ...)"
        raise ValueError(f"{has}; kv_cache_dtype 'fp8_e4m3' {needed}, and 'auto' runs on this one")


def _number(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
