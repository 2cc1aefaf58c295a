from hypothesis import given
from hypothesis import strategies as st

from chorus_workers.engine.messages import Abort, Decoder, encode


@given(sizes=st.lists(st.integers(0, 3000), max_size=6), cuts=st.lists(st.integers(1, 700), min_size=1))
def test_messages_arrive_whole_and_in_order_however_the_bytes_are_cut(sizes: list[int], cuts: list[int]) -> None:
    sent = [Abort("x" * size) for size in sizes]
    data = b"".join(encode(message) for message in sent)
    decoder = Decoder()
    received: list[object] = []
    position = turn = 0
    while position < len(data):
        size = cuts[turn % len(cuts)]
        received.extend(decoder.feed(data[position : position + size]))
        position, turn = position + size, turn + 1
    assert received == sent
