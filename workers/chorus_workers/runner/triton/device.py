"""Which GPU the Triton runner runs on."""

import torch

# bfloat16 on tensor cores, and asynchronous copies: A100 and newer.
_MIN_CAPABILITY = (8, 0)


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
