"""Compiles kernels for Hopper (sm_90) on a machine without a GPU, and tells what the assembler made of them.

A process that interprets kernels can't compile them, so this module is also the program that does: a line of JSON on
its standard input is a list of variants, and one on its output what became of them.
"""

import dataclasses
import functools
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ROOTS = ("cluster", "workers", "kernels", "protos", "vocabulary", ".")
_REPOSITORY = Path(__file__).parents[2]
_STORES = re.compile(r"\b(st|red|atom)\.[\w.:]*global")


@dataclass(frozen=True, slots=True)
class Variant:
    """One compilation: `kernel` is "module:function"; `signature` maps its run-time parameters, in their order, to
    Triton's types ("*bf16", "i32", ...); `constants` its constexprs. Pointers are taken as divisible by 16, and so are
    the integers named in `divisible`; an integer whose signature says "1" is specialised to one. `dependent`: whether a
    kernel that can begin before the one before it has ended is compiled to."""

    kernel: str
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    divisible: Sequence[str] = ()
    max_registers: int | None = None
    # The compute capability, times ten: Hopper's, unless another is given.
    capability: int = 90
    dependent: bool = True


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a kernel takes: registers a thread, bytes spilled a thread, bytes of shared memory a program. `specialised`:
    the run-time integers of which a new kind of value (1, a multiple of 16, another) makes a launch compile anew;
    `early`: whether it may begin before the kernel before it has ended."""

    registers: int
    spilled: int
    shared: int
    ptx: str
    specialised: Sequence[str]
    early: bool


@functools.cache
def _compiler() -> "subprocess.Popen[str]":
    """One for many tests, as its start takes longer than a kernel."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    path = os.pathsep.join(str(_REPOSITORY / root) for root in _ROOTS)
    return subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**environment, "PYTHONPATH": path},
    )


def end_compiler() -> None:
    """Ends it, if there is one."""
    if _compiler.cache_info().currsize:
        # It ends when its input does.
        _compiler().communicate()
        _compiler.cache_clear()


def compile_for_hopper(variants: Sequence[Variant]) -> list[Compiled]:
    """Compiles each variant. Errors: AssertionError; the compiler's words are on stderr, which pytest shows."""
    compiler = _compiler()
    assert compiler.stdin is not None and compiler.stdout is not None
    answer = ""
    try:
        compiler.stdin.write(json.dumps([dataclasses.asdict(variant) for variant in variants]) + "\n")
        compiler.stdin.flush()
        answer = compiler.stdout.readline()
    finally:
        # Also where pytest's time is up: the next test must not read this one's answer.
        if not answer:
            _compiler.cache_clear()
            compiler.kill()
            compiler.communicate()
    assert answer, "the compiler has failed"
    compiled = [Compiled(**fields) for fields in json.loads(answer)]
    for variant, kernel in zip(variants, compiled, strict=True):
        # Waiting is asked of exactly the kernels that may begin early, and none stores before it has waited.
        ahead, *behind = kernel.ptx.split("griddepcontrol.wait")
        assert bool(behind) == kernel.early, variant
        assert not behind or not _STORES.search(ahead), variant
    return compiled


def check_that_they_run_on_ampere(variants: Sequence[Variant]) -> None:
    """On the oldest GPUs that are supported (A100), of 163 KiB of shared memory a program."""
    for variant, compiled in zip(
        variants,
        compile_for_hopper([dataclasses.replace(variant, capability=80) for variant in variants]),
        strict=True,
    ):
        assert compiled.shared <= 163 * 1024, variant
        assert "wgmma" not in compiled.ptx and not compiled.early, variant


def _compile(variant: Variant) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, name = variant.kernel.split(":")
    function = getattr(importlib.import_module(module), name)
    can_wait = "DEPENDENT" in function.arg_names
    early = can_wait and variant.dependent and variant.capability >= 90
    constants = {**variant.constants, "DEPENDENT": early} if can_wait else variant.constants
    signature = {
        parameter: "constexpr"
        if parameter in constants or variant.signature[parameter] == "1"
        else variant.signature[parameter]
        for parameter in function.arg_names
    }
    ones = {parameter: 1 for parameter, kind in variant.signature.items() if kind == "1"}
    attributes = {
        (index,): [["tt.divisibility", 16]]
        for index, (parameter, kind) in enumerate(signature.items())
        if kind.startswith("*") or parameter in variant.divisible
    }
    source = ASTSource(function, signature, {**constants, **ones}, attributes)
    options: dict[str, Any] = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    if early:
        options["launch_pdl"] = True
    if variant.max_registers is not None:
        options["maxnreg"] = variant.max_registers
    compiled = triton.compile(source, target=GPUTarget("cuda", variant.capability, 32), options=options)
    registers, spilled = _resources(compiled.asm["cubin"])
    integers = [name for name, kind in variant.signature.items() if kind in ("i32", "i64", "1")]
    specialised = [p.name for p in function.params if p.name in integers and not p.do_not_specialize]
    return Compiled(registers, spilled, compiled.metadata.shared, compiled.asm["ptx"], specialised, early)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes of stack and local memory (which is where spills go)."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", said.stdout)
    assert found, said.stdout
    return int(found[1]), int(found[2]) + int(found[3])


def _serve() -> None:
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        for line in sys.stdin:
            compiled = [_compile(Variant(**fields)) for fields in json.loads(line)]
            sys.stdout.write(json.dumps([dataclasses.asdict(result) for result in compiled]) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    _serve()
