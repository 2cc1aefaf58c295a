"""The model room's one error."""

from pathlib import Path


class CheckpointError(Exception):
    """A checkpoint can't be served. The message names the file, and the tensor or field at fault."""

    def __init__(self, path: Path, problem: str, tensor: str | None = None) -> None:
        where = str(path) if tensor is None else f"{path}: tensor {tensor}"
        super().__init__(f"{where}: {problem}")
        self.path = path
        self.tensor = tensor
        self._arguments = (path, problem, tensor)

    def __reduce__(self) -> "tuple[type[CheckpointError], tuple[Path, str, str | None]]":
        """Errors of other processes arrive pickled."""
        return CheckpointError, self._arguments
