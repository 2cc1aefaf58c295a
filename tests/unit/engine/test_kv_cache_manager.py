import pytest

from chorus_workers.engine.kv_cache import KVCacheManager


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
    with pytest.raises(AssertionError, match="held twice"):
        kv.check_integrity([handle])
    handle.block_table[0] = kv._free_blocks[0]
    with pytest.raises(AssertionError, match="both held and free"):
        kv.check_integrity([handle])
