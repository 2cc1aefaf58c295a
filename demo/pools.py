"""The words that generated conversations are made of (pools.yaml), as lists."""

from pathlib import Path

import yaml

_FOLDER = Path(__file__).parent
_TEXTS: dict[str, str | list[str]] = yaml.safe_load((_FOLDER / "pools.yaml").read_text())


def _pool(name: str) -> list[str]:
    text = _TEXTS[name]
    if isinstance(text, list):
        return text
    return text.split(", ") if "," in text else text.split()


# Frequent words that no task is about: what a message, a search or an argument may hold.
COMMON = (_FOLDER / "common_words.txt").read_text().split()
CITIES = _pool("cities")
NAMES = _pool("names")
WORDS = _pool("words")
COUNTRIES = _pool("countries")
CURRENCIES = _pool("currencies")
UNITS = _pool("units")
LANGUAGES = _pool("languages")
COMPANIES = _pool("companies")
SYMBOLS = _pool("symbols")
ROOMS = _pool("rooms")
DAYS = _pool("days")
COLORS = _pool("colors")
CONDITIONS = _pool("conditions")
ADJECTIVES = _pool("adjectives")
THINGS = _pool("things")
TASKS = _pool("tasks")
EVENTS = _pool("events")
MESSAGES = _pool("messages")
SINGERS = _pool("singers")
VERBS = _pool("verbs")
NOUNS = _pool("nouns")
FIELDS = _pool("fields")
ONES = _pool("ones")
INSTRUCTIONS = _pool("instructions")
OPPOSITES = [(word, other) for word, other in (pair.split() for pair in _pool("opposites"))]
