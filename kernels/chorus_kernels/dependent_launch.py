"""Programmatic dependent launch: a kernel begins while the one before it runs, and waits before it uses its results.

What a kernel does before `wait_for_previous` overlaps the end of the kernel before it: being launched, and loads of
what is at rest (weights, written by nothing that is still in the stream). After it, every earlier kernel is done, and
its results are visible.

`let_next_begin` lets the next kernel of the stream begin as soon as every program has called it or ended. Where in a
kernel it pays was measured (docs/performance.md): at once where programs are few or the next one's are, so that they
are there when it is their turn; late where the next kernel's loads would take the memory's time from this one.

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


# Of a kernel that begins when the one before it has ended.
NOT_DEPENDENT: LaunchOptions = {"DEPENDENT": False}


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
    return NOT_DEPENDENT


@cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)
