"""Notes the kernels that are compiled; without a GPU, those that one would have compiled."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import triton
from torch import Tensor

_ALIGNMENT = 16


@contextmanager
def compiled_variants() -> Iterator[set[str]]:
    """Gathers the variants of kernels that are launched within it; on a GPU, those that the process had not launched
    before. Without one no kernel runs: results are whatever memory held."""
    variants: set[str] = set()
    with pytest.MonkeyPatch.context() as patch:
        if torch.cuda.is_available():

            def add(*, key: str, repr: str, **_: object) -> None:
                variants.add(f"{repr} {key}")

            patch.setattr(triton.knobs.runtime, "jit_post_compile_hook", add)
        else:
            from triton.runtime.interpreter import InterpretedFunction

            def note(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
                variants.add(_variant(kernel, args, kwargs))

            patch.setattr(InterpretedFunction, "run", note)
        yield variants


def _variant(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """What Triton compiles by: constants, and of other arguments the dtype, whether it is 1, and its alignment."""
    parameters = inspect.signature(kernel.fn).parameters
    options = {name: value for name, value in kwargs.items() if name not in parameters}
    bound = inspect.signature(kernel.fn).bind(*args, **{n: v for n, v in kwargs.items() if n in parameters})
    plain = kernel.kwargs["do_not_specialize"] or ()
    kinds = [
        value if "constexpr" in str(parameters[name].annotation) else _kind(value, name not in plain)
        for name, value in bound.arguments.items()
    ]
    return f"{kernel.fn.__module__}.{kernel.fn.__name__}{kinds}{options}"


def _kind(value: Any, is_specialized: bool) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype}/{value.data_ptr() % _ALIGNMENT == 0}"
    if not isinstance(value, int):
        return type(value).__name__
    if is_specialized and value == 1:
        return "1"
    width = 32 if -(2**31) <= value < 2**31 else 64
    return f"i{width}/{is_specialized and value % _ALIGNMENT == 0}"
