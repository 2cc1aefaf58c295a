"""A set of line numbers at one bit a line, so that a job of ten million rows keeps its state in 1.25 MB."""


class LineSet:
    """Line numbers from 0 to `max_number`."""

    def __init__(self, max_number: int) -> None:
        self._bits = bytearray(max_number // 8 + 1)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, number: int) -> bool:
        return bool(self._bits[number >> 3] >> (number & 7) & 1)

    def add(self, number: int) -> None:
        """Raises IndexError beyond `max_number`."""
        if number not in self:
            self._bits[number >> 3] |= 1 << (number & 7)
            self._count += 1
