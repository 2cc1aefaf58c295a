from collections.abc import Sequence

import pytest

from chorus_workers.engine.kv_cache import KVCacheManager, KVHandle
from chorus_workers.engine.prefix_cache import PageHashes, PrefixCache


def build() -> KVCacheManager:
    return KVCacheManager(num_blocks=5, block_size=4, num_slots=2)


def test_pages_are_handed_out_for_whole_prompts_or_not_at_all() -> None:
    kv = build()
    first = kv.allocate(range(9))
    assert first is not None
    assert len(first.block_table) == 3
    assert kv.usage == pytest.approx(0.6)
    assert kv.allocate(range(9)) is None
    assert kv.allocate(range(8), reserve=1) is None
    second = kv.allocate(range(8))
    assert second is not None
    kv.check_integrity([first, second])
    assert kv.num_free_blocks == kv.num_free_slots == 0


def test_without_a_slot_nothing_is_taken() -> None:
    kv = build()
    handles = [kv.allocate([1]), kv.allocate([1])]
    assert kv.allocate([1]) is None
    assert kv.num_free_blocks == 3
    kv.check_integrity([handle for handle in handles if handle])


def test_pages_and_slots_freed_last_are_used_first() -> None:
    kv = build()
    first, second = kv.allocate(range(8)), kv.allocate(range(4))
    assert first is not None and second is not None
    assert (first.block_table, second.block_table) == ([0, 1], [2])
    kv.free(second)
    kv.free(first)
    again = kv.allocate(range(12))
    assert again is not None
    assert (again.block_table, again.slot) == ([0, 1, 2], first.slot)


def test_a_handle_grows_by_pages_and_fails_without_a_trace() -> None:
    kv = build()
    handle, other = kv.allocate(range(4)), kv.allocate(range(4))
    assert handle is not None and other is not None
    assert kv.grow(handle, 4) and len(handle.block_table) == 1
    assert kv.grow(handle, 16) and len(handle.block_table) == 4
    assert not kv.grow(handle, 17)
    assert len(handle.block_table) == 4
    kv.free(other)
    assert kv.grow(handle, 17)
    kv.free(handle)
    kv.check_integrity([])
    assert kv.usage == 0


def test_integrity_finds_what_is_lost_and_what_is_held_twice() -> None:
    kv = build()
    handle = kv.allocate(range(8))
    assert handle is not None
    with pytest.raises(AssertionError, match="pages: 0 held"):
        kv.check_integrity([])
    handle.block_table[0] = handle.block_table[1]
    with pytest.raises(AssertionError, match="pages: 1 held and 3 free"):
        kv.check_integrity([handle])
    handle.block_table[0] = kv._free_blocks[0]
    with pytest.raises(AssertionError, match="held more often, or less"):
        kv.check_integrity([handle])


def build_cached(num_blocks: int = 6, num_snapshots: int = 9) -> tuple[KVCacheManager, PrefixCache]:
    cache = PrefixCache(num_snapshots=num_snapshots, has_window_layers=True)
    return KVCacheManager(num_blocks=num_blocks, block_size=4, num_slots=3, prefix_cache=cache), cache


def begin(kv: KVCacheManager, tokens: Sequence[int], salt: str = "", reserve: int = 0) -> KVHandle | None:
    return kv.allocate(tokens, PageHashes(4, salt), reserve=reserve)


def compute(kv: KVCacheManager, handle: KVHandle, tokens: Sequence[int]) -> None:
    kv.plan_saves(handle, len(tokens))
    kv.register(handle, tokens, len(tokens))


def run(kv: KVCacheManager, tokens: Sequence[int]) -> int:
    """A request from its beginning to its end; returns how many of its tokens were cached."""
    handle = begin(kv, tokens)
    assert handle is not None
    compute(kv, handle, tokens)
    kv.check_integrity([handle])
    kv.free(handle)
    kv.check_integrity([])
    assert kv.usage == 0
    return handle.num_cached_tokens


def test_pages_are_taken_unknown_first_then_longest_unused_and_ends_before_beginnings() -> None:
    kv, cache = build_cached()
    first, second = range(13), [*range(8), 99]
    run(kv, first)
    run(kv, second)
    # Four pages were used, of which three became known; the second request shared two of them.
    table = begin(kv, first)
    assert table is not None
    known = table.block_table[:3]
    kv.free(table)
    assert run(kv, [*range(8), 98]) == 8
    taken = []
    handle = kv.allocate([7])
    assert handle is not None
    for num_tokens in range(5, 25, 4):
        taken += handle.block_table[-1:]
        assert kv.grow(handle, num_tokens)
        kv.check_integrity([handle])
    taken += handle.block_table[-1:]
    assert set(taken[:3]).isdisjoint(known) and taken[3:] == known[::-1]
    assert cache.num_pages == 0
    assert cache.num_idle_snapshots == len(cache._free_snapshots) == 9
    assert not kv.grow(handle, 25)


def test_cached_pages_are_taken_from_the_free_ones() -> None:
    kv, _ = build_cached()
    run(kv, range(13))
    assert begin(kv, range(13), reserve=3) is None
    handle = begin(kv, range(13), reserve=2)
    assert handle is not None and handle.num_cached_tokens == 12
    assert kv.num_free_blocks == 2
    # Who shares needs but one page of its own.
    other = begin(kv, [*range(12), 5], reserve=1)
    assert other is not None and other.block_table[:3] == handle.block_table[:3]
    assert kv.num_free_blocks == 1
    kv.check_integrity([handle, other])
    assert begin(kv, [*range(11), 5, 6]) is None
    kv.free(handle)
    kv.check_integrity([other])
    assert kv.num_free_blocks == 2


def test_equal_pages_become_one() -> None:
    kv, _ = build_cached(num_blocks=8)
    handles = [begin(kv, range(13)) for _ in range(2)]
    assert handles[0] is not None and handles[1] is not None
    for handle in handles:
        assert handle is not None
        compute(kv, handle, range(13))
    first, second = handles
    assert first.block_table[:3] == second.block_table[:3] and first.block_table[3] != second.block_table[3]
    assert kv.num_free_blocks == 3
    kv.check_integrity([first, second])
    kv.free(first)
    assert kv.num_free_blocks == 4
    kv.free(second)
    kv.check_integrity([])


def test_what_was_not_registered_is_not_known() -> None:
    kv, cache = build_cached()
    handle = begin(kv, range(13))
    assert handle is not None
    assert kv.plan_saves(handle, 11) == []
    ((position, _),) = kv.plan_saves(handle, 12)
    assert position == 12
    kv.check_integrity([handle])
    kv.free(handle)
    kv.check_integrity([])
    assert cache.num_pages == 0 and len(cache._free_snapshots) == 9


def test_integrity_finds_snapshots_and_pages_that_got_lost() -> None:
    kv, cache = build_cached()
    run(kv, range(13))
    snapshot = cache.take_snapshot()
    with pytest.raises(AssertionError, match="a snapshot is lost"):
        kv.check_integrity([])
    cache.drop_snapshot(snapshot or 0)
    kv._free_blocks.append(kv._idle_blocks.popitem()[0])
    with pytest.raises(AssertionError, match="neither held nor"):
        kv.check_integrity([])


def test_names_depend_on_everything_before_and_on_the_salt() -> None:
    tokens = list(range(8))
    names = {bytes(PageHashes(4, salt).first(2, tokens)[1]) for salt in ("", "a", "b")}
    names |= {bytes(PageHashes(4).first(2, [9, *tokens[1:]])[1]), bytes(PageHashes(4).first(2, [*tokens[:7], 9])[1])}
    names |= {bytes(PageHashes(4).first(1, tokens[4:])[0]), bytes(PageHashes(8).first(1, tokens)[0])}
    assert len(names) == 7
    grown = PageHashes(4)
    assert list(grown.first(1, tokens)) + list(grown.first(2, tokens)[1:]) == list(PageHashes(4).first(2, tokens))
