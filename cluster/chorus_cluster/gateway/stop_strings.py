"""Stop strings, matched in the answer as it streams."""


class StopStrings:
    """Finds the first of some strings in a text that comes in pieces, and holds back what may be the start of one.

    The match that ends first wins (of two with one end, the longer): it is where a model that stopped at once would
    have stopped, and it doesn't depend on where the pieces are cut.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.matched = False

    def feed(self, text: str) -> str:
        """Returns what of the text so far may be shown and was not yet; after a match, nothing more."""
        if self.matched:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        matches = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if matches:
            self.matched, self._held = True, ""
            return text[: min(matches)[1]]
        open_start = self._open_start(text)
        self._held = text[open_start:]
        return text[:open_start]

    def finish(self) -> str:
        """The text has ended without a match: returns what was held back."""
        text, self._held = self._held, ""
        return text

    def _open_start(self, text: str) -> int:
        """Where the longest unfinished match begins: from there on, the text is the beginning of a stop string."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if any(stop.startswith(text[start:]) for stop in self._stops):
                return start
        return len(text)
