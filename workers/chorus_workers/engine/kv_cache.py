"""Who holds which KV memory. The memory itself is the runner's; here are only numbers.

Full-attention layers use pages of `block_size` positions. Window layers use a ring for each running request, found by
its *slot*, so a slot is all that is handed out for them. A handle is opaque to the scheduler, which passes its block
table and slot on to the runner.

With a prefix cache, full pages stay known after their request, and a later one that begins alike holds them too. A page
that several hold is full, and nobody writes to it. One that nobody holds is free, known or not: known ones are taken
last, in the order in which they were let go, a page always before those that it continues.
"""

from collections import Counter, OrderedDict
from collections.abc import Sequence

from chorus_workers.engine.prefix_cache import PageHashes, PrefixCache


class KVHandle:
    """The KV memory of one running request."""

    __slots__ = (
        "block_table",
        "hashes",
        "num_cached_tokens",
        "num_known_pages",
        "restore",
        "save_positions",
        "saved",
        "slot",
    )

    def __init__(
        self, slot: int, block_table: list[int], num_cached_tokens: int = 0, hashes: PageHashes | None = None
    ) -> None:
        self.slot = slot
        # Pages in order of position. The list only grows; where a page is replaced, there is another list.
        self.block_table = block_table
        # Leading tokens whose KV was there already.
        self.num_cached_tokens = num_cached_tokens
        self.hashes = hashes
        # Leading pages that the prefix cache knows.
        self.num_known_pages = 0
        # The snapshot that the ring must be filled from before the first token is computed.
        self.restore: int | None = None
        # Where snapshots of the ring are wanted, in order; and those that were taken but not made known yet.
        self.save_positions: list[int] = []
        self.saved: list[tuple[int, int]] = []


class KVCacheManager:
    """Hands out pages and slots, and takes them back."""

    def __init__(
        self, *, num_blocks: int, block_size: int, num_slots: int, prefix_cache: PrefixCache | None = None
    ) -> None:
        """Without `prefix_cache` no KV is used twice."""
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_slots = num_slots
        self._cache = prefix_cache
        # Taken from the end, so that pages freed last, and likely still in a cache of the device, are used first.
        self._free_blocks = list(range(num_blocks - 1, -1, -1))
        self._free_slots = list(range(num_slots - 1, -1, -1))
        # Known to the prefix cache and held by nobody, longest ago first.
        self._idle_blocks: OrderedDict[int, None] = OrderedDict()
        # How many handles hold a page, for those that any does.
        self._num_holders: Counter[int] = Counter()

    @property
    def capacity(self) -> int:
        """Positions that one request can have at most."""
        return self.num_blocks * self.block_size

    @property
    def num_free_blocks(self) -> int:
        return len(self._free_blocks) + len(self._idle_blocks)

    @property
    def num_free_slots(self) -> int:
        return len(self._free_slots)

    @property
    def usage(self) -> float:
        """Share of pages in use, 0 to 1."""
        return 1 - self.num_free_blocks / self.num_blocks

    def allocate(
        self,
        token_ids: Sequence[int],
        hashes: PageHashes | None = None,
        *,
        num_shareable: int | None = None,
        reserve: int = 0,
    ) -> KVHandle | None:
        """A slot, and pages for all of `token_ids`, of which at least the last is left to compute; None if there is no
        slot, or less than `reserve` pages would be left. Nothing is taken then.

        `hashes` names the tokens' pages; without it no cached ones are looked for, and none become known. Nor are any
        looked for, or snapshots wanted, behind the first `num_shareable` tokens (all, by default).
        """
        if not self._free_slots:
            return None
        last = (min(len(token_ids), num_shareable or len(token_ids)) - 1) // self.block_size
        cache = self._cache if hashes is not None else None
        known = cache.find(hashes.first(last, token_ids), last) if cache and hashes else []
        num_cached = cache.count_usable(known) if cache else 0
        cached = known[:num_cached]
        num_missing = -(-len(token_ids) // self.block_size) - num_cached
        num_idle = sum(page in self._idle_blocks for page in cached)
        if num_missing + num_idle + reserve > self.num_free_blocks:
            return None
        # First, lest they be taken for what is missing.
        self._hold(cached)
        table = [*cached, *self._take(num_missing)]
        handle = KVHandle(self._free_slots.pop(), table, num_cached * self.block_size, hashes)
        handle.num_known_pages = num_cached
        if cache and cache.has_window_layers:
            handle.restore = cache.use_snapshot(cached[-1]) if cached else None
            # For whoever asks the same or goes on from here; and for the next one to share what just these pages hold.
            handle.save_positions = [n * self.block_size for n in sorted({len(known), last}) if n > num_cached]
        return handle

    def grow(self, handle: KVHandle, num_tokens: int) -> bool:
        """Makes the handle hold `num_tokens` positions. False, with nothing taken, if there are not enough pages."""
        num_missing = -(-num_tokens // self.block_size) - len(handle.block_table)
        if num_missing <= 0:
            return True
        if num_missing > self.num_free_blocks:
            return False
        handle.block_table.extend(self._take(num_missing))
        return True

    def plan_saves(self, handle: KVHandle, end: int) -> Sequence[tuple[int, int]]:
        """Positions up to `end`, which the request is about to reach, whose ring the runner must save, and the
        snapshots to save it to."""
        planned = []
        while self._cache and handle.save_positions and handle.save_positions[0] <= end:
            position = handle.save_positions.pop(0)
            snapshot = self._cache.take_snapshot()
            if snapshot is not None:
                planned.append((position, snapshot))
        handle.saved += planned
        return planned

    def register(self, handle: KVHandle, token_ids: Sequence[int], num_computed_tokens: int) -> None:
        """Makes known what the request has computed, up to the token of that number. To be called only once that has
        shown to be sound: a token was drawn from finite logits, which no position before it can have spoilt. Later
        tokens, which a step under way may be computing, stay unknown."""
        num_full = num_computed_tokens // self.block_size
        if num_full == handle.num_known_pages or self._cache is None or handle.hashes is None:
            return
        hashes = handle.hashes.first(num_full, token_ids)
        for index in range(handle.num_known_pages, num_full):
            self._register_page(handle, index, hashes[index])
        handle.num_known_pages = num_full
        while handle.saved:
            position, snapshot = handle.saved.pop()
            self._cache.keep_snapshot(handle.block_table[position // self.block_size - 1], snapshot)

    def free(self, handle: KVHandle) -> None:
        """Takes everything back; the handle is empty afterwards."""
        for page in reversed(handle.block_table):
            self._let_go(page)
        self._free_slots.append(handle.slot)
        handle.block_table = []
        while self._cache and handle.saved:
            self._cache.drop_snapshot(handle.saved.pop()[1])

    def check_integrity(self, handles: Sequence[KVHandle]) -> None:
        """Raises AssertionError unless every page, slot and snapshot is either free or held by `handles` as it should
        be. Takes time for what is held, not for all there is: it runs whenever the engine becomes idle."""
        held = Counter(page for handle in handles for page in handle.block_table)
        held_slots = [handle.slot for handle in handles]
        for name, num_held, num_free, total in (
            ("page", len(held), self.num_free_blocks, self.num_blocks),
            ("slot", len(held_slots), len(self._free_slots), self.num_slots),
        ):
            if num_held + num_free != total:
                raise AssertionError(f"{name}s: {num_held} held and {num_free} free are not {total}")
        if held != self._num_holders:
            raise AssertionError("a page is held more often, or less, than it was handed out")
        if any(count > 1 and not (self._cache and page in self._cache) for page, count in held.items()):
            raise AssertionError("a page that is not known is held twice")
        if held and not (held.keys().isdisjoint(self._free_blocks) and held.keys().isdisjoint(self._idle_blocks)):
            raise AssertionError("a page is both held and free")
        if len(set(held_slots)) != len(held_slots) or not set(held_slots).isdisjoint(self._free_slots):
            raise AssertionError("a slot is held twice, or both held and free")
        if self._cache:
            self._check_cache(self._cache, held, sum(len(handle.saved) for handle in handles))

    def _check_cache(self, cache: PrefixCache, held: Counter[int], num_saved: int) -> None:
        cache.check_integrity()
        if cache.num_pages != len(self._idle_blocks) + sum(page in cache for page in held):
            raise AssertionError("a known page is neither held nor among those to be taken last")
        if cache.num_idle_snapshots + num_saved != cache.num_snapshots:
            raise AssertionError("a snapshot is lost, or used twice")

    def _hold(self, pages: Sequence[int]) -> None:
        for page in pages:
            self._idle_blocks.pop(page, None)
            self._num_holders[page] += 1

    def _let_go(self, page: int) -> None:
        self._num_holders[page] -= 1
        if self._num_holders[page]:
            return
        del self._num_holders[page]
        if self._cache and page in self._cache:
            self._idle_blocks[page] = None
        else:
            self._free_blocks.append(page)

    def _register_page(self, handle: KVHandle, index: int, name: bytes) -> None:
        """Names a page of a handle. If an equal one is known, the handle holds that one from now on: content that two
        requests computed side by side is kept once, and a page is never let go before those that continue it."""
        assert self._cache is not None
        page = handle.block_table[index]
        known = self._cache.name(page, name)
        if known != page:
            self._hold([known])
            # A new list: runners tell by it that more has changed than what is new at the end.
            handle.block_table = [*handle.block_table[:index], known, *handle.block_table[index + 1 :]]
            self._let_go(page)

    def _take(self, count: int) -> list[int]:
        """`count` free pages, unknown ones first."""
        taken = []
        for _ in range(count):
            if self._free_blocks:
                page = self._free_blocks.pop()
            else:
                page, _ = self._idle_blocks.popitem(last=False)
                assert self._cache is not None
                self._cache.forget(page)
            self._num_holders[page] = 1
            taken.append(page)
        return taken
