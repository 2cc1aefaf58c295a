"""Who holds which KV memory. The memory itself is the runner's; here are only numbers.

Full-attention layers use pages of `block_size` positions. Window layers use a ring for each running request, found by
its *slot*, so a slot is all that is handed out for them. A handle is opaque to the scheduler, which passes its block
table and slot on to the runner.
"""

from collections.abc import Sequence


class KVHandle:
    """The KV memory of one running request."""

    __slots__ = ("block_table", "num_cached_tokens", "slot")

    def __init__(self, slot: int, block_table: list[int], num_cached_tokens: int) -> None:
        self.slot = slot
        # Pages in order of position.
        self.block_table = block_table
        # Leading tokens whose KV was there already. 0 until there is a prefix cache.
        self.num_cached_tokens = num_cached_tokens


class KVCacheManager:
    """Hands out pages and slots, and takes them back."""

    def __init__(self, *, num_blocks: int, block_size: int, num_slots: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_slots = num_slots
        # Taken from the end, so that pages freed last, and likely still in a cache of the device, are used first.
        self._free_blocks = list(range(num_blocks - 1, -1, -1))
        self._free_slots = list(range(num_slots - 1, -1, -1))

    @property
    def capacity(self) -> int:
        """Positions that one request can have at most."""
        return self.num_blocks * self.block_size

    @property
    def num_free_blocks(self) -> int:
        return len(self._free_blocks)

    @property
    def num_free_slots(self) -> int:
        return len(self._free_slots)

    @property
    def usage(self) -> float:
        """Share of pages in use, 0 to 1."""
        return 1 - len(self._free_blocks) / self.num_blocks

    def allocate(self, token_ids: Sequence[int], *, reserve: int = 0) -> KVHandle | None:
        """A slot, and pages for all of `token_ids`; None if there is no slot, or less than `reserve` pages would be
        left. Nothing is taken then."""
        num_needed = -(-len(token_ids) // self.block_size)
        if not self._free_slots or num_needed + reserve > len(self._free_blocks):
            return None
        return KVHandle(self._free_slots.pop(), self._take(num_needed), num_cached_tokens=0)

    def grow(self, handle: KVHandle, num_tokens: int) -> bool:
        """Makes the handle hold `num_tokens` positions. False, with nothing taken, if there are not enough pages."""
        num_missing = -(-num_tokens // self.block_size) - len(handle.block_table)
        if num_missing <= 0:
            return True
        if num_missing > len(self._free_blocks):
            return False
        handle.block_table.extend(self._take(num_missing))
        return True

    def free(self, handle: KVHandle) -> None:
        """Takes everything back; the handle is empty afterwards."""
        self._free_blocks.extend(reversed(handle.block_table))
        self._free_slots.append(handle.slot)
        handle.block_table = []

    def check_integrity(self, handles: Sequence[KVHandle]) -> None:
        """Raises AssertionError unless every page and slot is either free or held by exactly one of `handles`."""
        held_blocks = [block for handle in handles for block in handle.block_table]
        held_slots = [handle.slot for handle in handles]
        for name, held, free, total in (
            ("page", held_blocks, self._free_blocks, self.num_blocks),
            ("slot", held_slots, self._free_slots, self.num_slots),
        ):
            if len(held) + len(free) != total:
                raise AssertionError(f"{name}s: {len(held)} held and {len(free)} free are not {total}")
            if len(set(held)) != len(held):
                raise AssertionError(f"a {name} is held twice")
            if held and not set(held).isdisjoint(free):
                raise AssertionError(f"a {name} is both held and free")

    def _take(self, count: int) -> list[int]:
        if count == 0:
            return []
        taken = self._free_blocks[-count:]
        del self._free_blocks[-count:]
        taken.reverse()
        return taken
