"""Named tensors in a folder of safetensors files, memory-mapped and checked."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from chorus_workers.model.errors import CheckpointError

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
BYTES = (torch.uint8,)
_INDEX = "model.safetensors.index.json"


class TensorFiles:
    """Finds tensors by name: through the index where the folder has one, else in all its *.safetensors files.

    Tensors are views of the mapped files: bytes are read when they are used. Errors are `CheckpointError`s.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[Path, safe_open] = {}
        self._index = folder / _INDEX if (folder / _INDEX).is_file() else None
        self._where = self._read_index(self._index) if self._index else self._scan()

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def read(self, name: str, shape: Sequence[int], dtypes: Sequence[torch.dtype] = FLOATS) -> Tensor:
        """The tensor, which must have this shape and one of these dtypes."""
        tensor = self._read(name)
        path = self._where[name]
        if tuple(tensor.shape) != tuple(shape):
            raise CheckpointError(path, f"the shape must be {list(shape)}, not {list(tensor.shape)}", name)
        if tensor.dtype not in dtypes:
            expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise CheckpointError(
                path, f"the dtype must be {expected}, not {str(tensor.dtype).removeprefix('torch.')}", name
            )
        return tensor

    def num_rows(self, name: str) -> int:
        """The length of a tensor's first dimension."""
        shape = self._read(name).shape
        if not shape:
            raise CheckpointError(self._where[name], "the tensor must have a dimension", name)
        return shape[0]

    def path(self, name: str) -> Path:
        """The file that holds a tensor, or the folder if none does."""
        return self._where.get(name, self._folder)

    def _read(self, name: str) -> Tensor:
        path = self._where.get(name)
        if path is None:
            raise CheckpointError(self._index or self._folder, "the tensor is missing", name)
        file = self._open(path, name)
        if name not in file.keys():  # noqa: SIM118 (safe_open is no mapping)
            raise CheckpointError(path, "the tensor is missing, though the index promises it", name)
        tensor: Tensor = file.get_tensor(name)
        return tensor

    def _open(self, path: Path, wanted: str | None = None) -> safe_open:
        if path not in self._files:
            try:
                self._files[path] = safe_open(path, framework="pt")
            except FileNotFoundError as error:
                raise CheckpointError(path, "the file is missing", wanted) from error
            except (OSError, SafetensorError) as error:
                tensor, problem = _diagnose(path)
                raise CheckpointError(path, problem, tensor or wanted) from error
        return self._files[path]

    def _read_index(self, path: Path) -> dict[str, Path]:
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(path, "the file is not readable as JSON") from error
        entries = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(entries, dict) or not all(isinstance(file, str) for file in entries.values()):
            raise CheckpointError(path, "weight_map must be an object of file names")
        for name, file in entries.items():
            if Path(file).name != file:
                raise CheckpointError(path, f"the file {file!r} must be a name within the folder", name)
        return {name: self._folder / file for name, file in entries.items()}

    def _scan(self) -> dict[str, Path]:
        paths = sorted(self._folder.glob("*.safetensors"))
        if not paths:
            raise CheckpointError(self._folder, "the folder has no *.safetensors files")
        return {name: path for path in paths for name in self._open(path).keys()}  # noqa: SIM118


def _diagnose(path: Path) -> tuple[str | None, str]:
    """Why a file can't be opened: the first tensor that the file is too short for, if any, and what is wrong."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if size < 8 or header_size > size - 8:
            return None, f"the file is truncated: {size} bytes are less than its header"
        try:
            header = json.loads(file.read(header_size))
            ends = {name: entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"}
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return None, "the file's header is damaged"
    cut = sorted((end, name) for name, end in ends.items() if end > size - 8 - header_size)
    if cut:
        return cut[0][1], f"the file is truncated: the tensor ends {cut[0][0] - (size - 8 - header_size)} bytes past it"
    return None, "the file is no valid safetensors file"
