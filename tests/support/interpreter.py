"""Mends Triton's interpreter where it differs from the hardware, or fails with the NumPy of the day.

bfloat16: it keeps such values as 16-bit integers, multiplies matrices of them as integers, cuts float32 off instead of
rounding it to the nearest even, and loses subnormals. float8_e4m3fn: it rounds halves away from zero, and neither
saturates nor keeps NaN; hardware does. Loops: a bound computed in the kernel is an array of one element,
which NumPy 2.4 no longer takes for an integer. Time: most of it went into what is the same each time, the language made
ready for each function that a kernel calls, and the types of shapes.
"""

import functools
import os
from typing import Any

import numpy as np
import torch


@functools.cache
def use_where_there_is_no_gpu() -> None:
    """Makes kernels run on CPU tensors. Call it before any of them is imported."""
    if torch.cuda.is_available():
        return
    os.environ["TRITON_INTERPRET"] = "1"
    # Hardware says nothing either of a NaN, an infinity, or what a masked lane computes.
    np.seterr(invalid="ignore", over="ignore")
    _mend()


def _mend() -> None:
    from triton.runtime import interpreter

    _teach_bfloat16()
    _teach_float8()
    patch = interpreter._patch_lang_tensor

    def with_index(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = with_index
    _prepare_once()
    _describe_shapes_late()


def _prepare_once() -> None:
    """A launch puts NumPy behind the language, and so does each call of a function by a kernel, again and again."""
    from triton.runtime import interpreter

    prepare, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    prepared: set[int] = set()

    def launched(self: Any, *args: Any, **kwargs: Any) -> None:
        # A launch ends by taking it away.
        prepared.clear()
        launch(self, *args, **kwargs)

    def prepared_once(function: Any) -> Any:
        # Functions of one module see the same language.
        module = id(function.__globals__)
        if module in prepared:
            return interpreter._LangPatchScope()
        prepared.add(module)
        return prepare(function)

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = prepared_once, launched


def _describe_shapes_late() -> None:
    """A shape is one of the language's tuples, which knows its type: more work than what is computed with a tensor of
    that shape, and hardly ever asked for."""
    from triton.language import core

    make = core.tuple.__init__

    def made(self: Any, values: Any, type: Any = None) -> None:
        if type is None:
            self.values = list(values)
        else:
            make(self, values, type)

    late = functools.cached_property(lambda self: core._type_for_tuple_values(self.values))
    late.__set_name__(core.tuple, "type")
    core.tuple.__init__, core.tuple.type = made, late


def _teach_bfloat16() -> None:
    import triton.language as tl
    from triton.runtime import interpreter

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    create_dot, cast = builder.create_dot, builder.cast_impl

    def widened(x: Any) -> Any:
        if x.dtype.scalar != tl.bfloat16:
            return x
        return handle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return create_dot(self, widened(a), widened(b), *rest)

    def rounded(self: Any, source: Any, target: Any) -> Any:
        if source.dtype.scalar == tl.bfloat16 and target.scalar == tl.float32:
            return widened(source)
        if source.dtype.scalar != tl.float32 or target.scalar != tl.bfloat16:
            return cast(self, source, target)
        data = np.asarray(source.data, dtype=np.float32)
        bits = data.view(np.uint32)
        nearest = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return handle(np.where(np.isnan(data), np.uint16(0x7FC0), nearest), tl.bfloat16)

    builder.create_dot, builder.cast_impl = dot, rounded


def _teach_float8() -> None:
    """After bfloat16, which its conversions go through."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    convert = builder.create_fp_to_fp

    def saturated(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        if target.scalar == tl.float8e4nv:
            wide = torch.from_numpy(np.array(self.cast_impl(source, tl.float32).data, np.float32))
            narrow = wide.clamp(-448, 448).to(torch.float8_e4m3fn)
            return handle(narrow.view(torch.uint8).numpy(), tl.float8e4nv)
        if source.dtype.scalar == tl.float8e4nv:
            wide = torch.from_numpy(np.array(source.data)).view(torch.float8_e4m3fn).float()
            return self.cast_impl(handle(wide.numpy(), tl.float32), target)
        return convert(self, source, target, rounding)

    builder.create_fp_to_fp = saturated
