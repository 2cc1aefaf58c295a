"""What earlier requests left in the KV memory, found by the tokens it was computed from.

A full page of full-attention KV is named by a hash: of the page before it, and of its own tokens; before the first page
stands the salt. So equal names mean equal tokens from the very first on, and the same salt.

Window layers keep no pages, but a ring that moves on. A request can begin behind cached pages only where a *snapshot*
of a ring was kept at just that position. Snapshots belong to the page that ends there, and go with it.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

_HASH_BYTES = 32
# Sets a salt's hash apart from every page's: without it, a salt could be chosen that stands for another one's page.
_SALT_DOMAIN = b"cache salt"


class PageHashes:
    """The names of a request's full pages, each computed once."""

    __slots__ = ("_block_size", "_hashes", "_root")

    def __init__(self, block_size: int, salt: str = "") -> None:
        self._block_size = block_size
        self._root = blake2b(salt.encode(), digest_size=_HASH_BYTES, person=_SALT_DOMAIN).digest()
        self._hashes: list[bytes] = []

    def first(self, count: int, token_ids: Sequence[int]) -> Sequence[bytes]:
        """The names of the first `count` pages, at least. `token_ids` fill them, and begin as they did before."""
        hashes, size = self._hashes, self._block_size
        parent = hashes[-1] if hashes else self._root
        for start in range(len(hashes) * size, count * size, size):
            page = array("I", token_ids[start : start + size]).tobytes()
            parent = blake2b(parent + page, digest_size=_HASH_BYTES).digest()
            hashes.append(parent)
        return hashes


class PrefixCache:
    """Names of pages, and the snapshots that belong to them. Whether anybody uses a page is not known here."""

    def __init__(self, *, num_snapshots: int, has_window_layers: bool) -> None:
        self.num_snapshots = num_snapshots
        self.has_window_layers = has_window_layers
        self._pages: dict[bytes, int] = {}
        self._hashes: dict[int, bytes] = {}
        # By page, least recently used first.
        self._snapshots: OrderedDict[int, int] = OrderedDict()
        self._free_snapshots = list(range(num_snapshots - 1, -1, -1))

    @property
    def num_pages(self) -> int:
        return len(self._hashes)

    @property
    def num_idle_snapshots(self) -> int:
        """Those that are free, and those that belong to a page."""
        return len(self._free_snapshots) + len(self._snapshots)

    def __contains__(self, page: int) -> bool:
        return page in self._hashes

    def find(self, hashes: Sequence[bytes], count: int) -> list[int]:
        """Pages of the first of `count` names, as far as they are known."""
        pages = []
        for index in range(count):
            page = self._pages.get(hashes[index])
            if page is None:
                break
            pages.append(page)
        return pages

    def count_usable(self, pages: Sequence[int]) -> int:
        """How many of `pages`, which `find` gave, a request can begin behind."""
        if not self.has_window_layers:
            return len(pages)
        return next((count for count in range(len(pages), 0, -1) if pages[count - 1] in self._snapshots), 0)

    def use_snapshot(self, page: int) -> int | None:
        """The snapshot at the end of a page, which becomes the most recently used; None if there is none."""
        if page not in self._snapshots:
            return None
        self._snapshots.move_to_end(page)
        return self._snapshots[page]

    def name(self, page: int, name: bytes) -> int:
        """Makes a page known. Returns the page that has the name: this one, or an equal one that had it before."""
        known = self._pages.setdefault(name, page)
        if known == page:
            self._hashes[page] = name
        return known

    def forget(self, page: int) -> None:
        """Takes a page's name and snapshot away: it is about to hold something else."""
        del self._pages[self._hashes.pop(page)]
        snapshot = self._snapshots.pop(page, None)
        if snapshot is not None:
            self._free_snapshots.append(snapshot)

    def take_snapshot(self) -> int | None:
        """A snapshot to write to: a free one, or the least recently used; None if all are being written."""
        if self._free_snapshots:
            return self._free_snapshots.pop()
        return self._snapshots.popitem(last=False)[1] if self._snapshots else None

    def keep_snapshot(self, page: int, snapshot: int) -> None:
        """Binds a snapshot that was written to the page that ends there. If that has one, it is free again."""
        if self._snapshots.setdefault(page, snapshot) != snapshot:
            self._snapshots.move_to_end(page)
            self.drop_snapshot(snapshot)

    def drop_snapshot(self, snapshot: int) -> None:
        """Takes back a snapshot that will not be used."""
        self._free_snapshots.append(snapshot)

    def check_integrity(self) -> None:
        """Raises AssertionError unless names and pages, and snapshots and pages, belong to one another."""
        if len(self._pages) != len(self._hashes):
            raise AssertionError("a page has several names, or a name several pages")
        if not self._snapshots.keys() <= self._hashes.keys():
            raise AssertionError("a snapshot belongs to a page without a name")
