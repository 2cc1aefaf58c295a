"""Programmatic dependent launch: a kernel begins while the one before it runs, and waits before it uses its results.

What a kernel does before `wait_for_previous` overlaps the end of the kernel before it: being launched, and loads of
what is at rest (weights, written by nothing that is still in the stream). After it, every earlier kernel is done, and
its results are visible.

`let_next_begin` lets the next kernel of the stream begin as soon as every program has called it or ended; called after
the wait, it keeps the chain of waits unbroken. A kernel with few programs calls it at once. One that fills the GPU
calls it when its work is all but done: programs of the next one that come where and when this one's end are not spread
evenly, and those that load ahead take the memory's time from it.

Source: NVIDIA, "CUDA Programming Guide", programmatic dependent launch and synchronization; compute capability 9.0 and
newer.
"""

from functools import cache
from typing import TypedDict

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

_MIN_CAPABILITY = (9, 0)


class LaunchOptions(TypedDict, total=False):
    """Arguments of a launch: DEPENDENT is the kernel's constexpr, launch_pdl Triton's option."""

    DEPENDENT: bool
    launch_pdl: bool


@triton.jit
def wait_for_previous(DEPENDENT: tl.constexpr):
    if DEPENDENT:
        gdc_wait()


@triton.jit
def let_next_begin(DEPENDENT: tl.constexpr):
    if DEPENDENT:
        gdc_launch_dependents()


def dependent_launch(device: torch.device) -> LaunchOptions:
    """For kernels that wait; without effect where the device can't."""
    if device.type == "cuda" and _capability(device.index or 0) >= _MIN_CAPABILITY:
        return {"DEPENDENT": True, "launch_pdl": True}
    return {"DEPENDENT": False}


@cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)
