"""Stop strings against the plain definition, however the text is cut."""

from hypothesis import given
from hypothesis import strategies as st

from chorus_cluster.gateway.stop_strings import StopStrings

_TEXT = st.text(alphabet="ab\n", max_size=40)
_STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=6), max_size=4).map(tuple)


def shown(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """What a model that stopped with the first stop string would have said."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@given(pieces=st.lists(_TEXT, max_size=8), stops=_STOPS)
def test_equals_the_definition_however_cut(pieces: list[str], stops: tuple[str, ...]) -> None:
    matcher = StopStrings(stops)
    parts = [matcher.feed(piece) for piece in pieces]
    if not matcher.matched:
        parts.append(matcher.finish())
    assert ("".join(parts), matcher.matched) == shown("".join(pieces), stops)


@given(pieces=st.lists(_TEXT, max_size=8), stops=_STOPS)
def test_holds_back_no_more_than_may_match(pieces: list[str], stops: tuple[str, ...]) -> None:
    matcher = StopStrings(stops)
    text = ""
    num_shown = 0
    for piece in pieces:
        num_shown += len(matcher.feed(piece))
        text += piece
        if matcher.matched:
            break
        held = text[num_shown:]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_without_stop_strings_everything_passes_at_once() -> None:
    matcher = StopStrings(())
    assert matcher.feed("abc") == "abc"
    assert matcher.finish() == ""
