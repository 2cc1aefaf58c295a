"""Tasks on the letters of words and on short lists of words."""

from collections.abc import Callable, Sequence
from random import Random

from demo.pools import COLORS, COMMON, NAMES, ONES, OPPOSITES, WORDS
from demo.sample import Question

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


def _quoted(rng: Random, word: str) -> str:
    return rng.choice(['"{}"', '"{}"', "{}", "{}", "'{}'"]).format(word)


def _spelled(word: str) -> str:
    return "-".join(word)


def _same(low: str, medium: str, high: str) -> dict[str, str]:
    return {"low": low, "medium": medium, "high": high}


def _word(rng: Random) -> str:
    return rng.choice(WORDS if rng.random() < 0.7 else COMMON)


def spell(rng: Random) -> Question:
    word = _word(rng)
    shown = _quoted(rng, word)
    text = rng.choice(
        [
            f"Spell {shown}.",
            f"Spell the word {shown}.",
            f"How do you spell {shown}?",
            f"How is {shown} spelled?",
            f"Spell {shown} letter by letter.",
            f"What are the letters of {shown}?",
            f"List the letters of {shown}.",
        ]
    )
    medium = f"I spell {word}, letter by letter."
    high = f"{medium} It has {len(word)} letters: {_spelled(word)}."
    return Question("words", f"spell {word}", text, _spelled(word), _same("", medium, high))


def reverse(rng: Random) -> Question:
    word = _word(rng)
    shown = _quoted(rng, word)
    text = rng.choice(
        [
            f"Reverse {shown}.",
            f"Reverse the word {shown}.",
            f"Spell {shown} backwards.",
            f"What is {shown} backwards?",
            f"Write {shown} backwards.",
            f"What is {shown} spelled backwards?",
            f"Reverse the letters of {shown}.",
        ]
    )
    letters = [f"{i} {letter}" for i, letter in enumerate(word, 1)]
    forth, back = ", ".join(letters), ", ".join(reversed(letters))
    medium = f"The letters are {forth}. From the end: {back}."
    high = f"The word is {word}. {medium} That makes {len(word)} letters, as before."
    return Question(
        "words", f"reverse {word}", text, _spelled(word[::-1]), _same(f"{forth}, back: {back}.", medium, high)
    )


def length(rng: Random) -> Question:
    word = _word(rng)
    shown = _quoted(rng, word)
    text = rng.choice(
        [
            f"How many letters are in {shown}?",
            f"How many letters does {shown} have?",
            f"Count the letters in {shown}.",
            f"How long is the word {shown}?",
            f"How many letters are in the word {shown}?",
            f"Count the letters of {shown}.",
        ]
    )
    counted = ", ".join(f"{i} {letter}" for i, letter in enumerate(word, 1))
    medium = f"I count: {counted}."
    high = f"The letters are {_spelled(word)}. {medium} So there are {len(word)}."
    return Question(
        "words", f"length {word}", text, f"{word} has {len(word)} letters.", _same(_spelled(word), medium, high)
    )


def occurrences(rng: Random) -> Question:
    word = _word(rng)
    letter = rng.choice(word) if rng.random() < 0.85 else rng.choice("aeiourstln")
    shown = _quoted(rng, word)
    text = rng.choice(
        [
            f"How many {letter}'s are in {shown}?",
            f"How many {letter}'s does {shown} have?",
            f"How often does the letter {letter} appear in {shown}?",
            f"How many times is {letter} in {shown}?",
            f"Count the letter {letter} in {shown}.",
            f'How many "{letter}" are in {shown}?',
        ]
    )
    total = word.count(letter)
    marks, seen = [], 0
    for char in word:
        seen += char == letter
        marks.append(f"{char} {seen}" if char == letter else char)
    counted = ", ".join(marks)
    medium = f"I look for {letter}: {counted}."
    high = f"The letters are {_spelled(word)}. {medium} So {letter} is there {total} {_times(total)}."
    answer = f"The letter {letter} is {total} {_times(total)} in {word}."
    return Question("words", f"count {letter} {word}", text, answer, _same(counted, medium, high))


def _times(count: int) -> str:
    return "time" if count == 1 else "times"


def position(rng: Random) -> Question:
    word = _word(rng)
    index = rng.choice([0, 0, len(word) - 1, len(word) - 1, rng.randrange(min(len(word), 6))])
    last = index == len(word) - 1
    which = "last" if last else ORDINALS[index]
    shown = _quoted(rng, word)
    text = rng.choice(
        [
            f"What is the {which} letter of {shown}?",
            f"Which letter is the {which} in {shown}?",
            f"What's the {which} letter in {shown}?",
            f"Give me the {which} letter of {shown}.",
        ]
    )
    medium = f"The letters are {_spelled(word)}."
    high = f"{medium} I take the {which}: {word[index]}."
    answer = f"The {which} letter of {word} is {word[index]}."
    low = "" if index == 0 or last else _spelled(word)
    return Question("words", f"position {which} {word}", text, answer, _same(low, medium, high))


def opposite(rng: Random) -> Question:
    pair = rng.choice(OPPOSITES[:40])
    word, other = pair
    shown = _quoted(rng, word)
    text = rng.choice(
        [
            f"What is the opposite of {shown}?",
            f"Opposite of {shown}?",
            f"Give me the opposite of {shown}.",
            f"What's the opposite of {shown}?",
            f"Name the opposite of {shown}.",
            f"Which word is the opposite of {shown}?",
            f"Tell me the opposite of the word {shown}.",
            f"What is the antonym of {shown}?",
        ]
    )
    medium = f"I need the opposite of {word}."
    high = f"{medium} {word.capitalize()} and {other} are opposites."
    answer = f"The opposite of {word} is {other}."
    return Question("words", f"opposite {text}", text, answer, _same("", medium, high))


def _listed(rng: Random, items: list[str]) -> str:
    if rng.random() < 0.6:
        return ", ".join(items)
    return ", ".join(items[:-1]) + " and " + items[-1]


def sort(rng: Random) -> Question:
    pool = rng.choice([WORDS, WORDS, NAMES])
    items: list[str] = []
    while len(items) < 3 + (rng.random() < 0.4):
        word = rng.choice(pool)
        if all(word[0] != other[0] for other in items):
            items.append(word)
    shown = _listed(rng, items)
    text = rng.choice(
        [
            f"Sort these words: {shown}.",
            f"Sort alphabetically: {shown}",
            f"Put in alphabetical order: {shown}.",
            f"Order these words alphabetically: {shown}.",
            f"Sort {shown} alphabetically.",
        ]
    )
    ordered = sorted(items)
    firsts = ", ".join(f"{word} {word[0].lower()}" for word in items)
    medium = f"First letters: {firsts}."
    high = f"I sort by the first letters. {medium} In order: {', '.join(word[0].lower() for word in ordered)}."
    return Question("words", f"sort {' '.join(ordered)}", text, ", ".join(ordered), _same(f"{firsts}.", medium, high))


def sort_numbers(rng: Random) -> Question:
    items = rng.sample(range(1, 100), rng.choice([3, 3, 4]))
    down = rng.random() < 0.3
    order = rng.choice(
        ["from large to small", "in descending order"] if down else ["from small to large", "in ascending order", ""]
    )
    shown = _listed(rng, [str(item) for item in items])
    text = rng.choice([f"Sort {shown} {order}".strip() + ".", f"Sort these numbers {order}".strip() + f": {shown}"])
    ordered = ", ".join(str(item) for item in sorted(items, reverse=down))
    end = "largest" if down else "smallest"
    first = max(items) if down else min(items)
    medium = f"The {end} is {first}."
    high = f"I sort the {len(items)} numbers. {medium} In order: {ordered}."
    return Question("words", f"numbers {down} {ordered}", text, ordered, _same("", medium, high))


def repeat(rng: Random) -> Question:
    count = rng.randint(2, 5)
    word = rng.choice(WORDS + COLORS + ["hello", "yes", "no", "hi"])
    shown = _quoted(rng, word)
    number = rng.choice([str(count), ONES[count]])
    text = rng.choice(
        [f"Say {shown} {number} times.", f"Repeat {shown} {number} times.", f"Write {shown} {number} times."]
    )
    medium = f"I write {word} {count} times."
    high = f"The word is {word}. The count is {count}. {medium}"
    return Question("words", f"repeat {word} {count}", text, " ".join([word] * count), _same("", medium, high))


def echo(rng: Random) -> Question:
    words = " ".join(rng.choice(WORDS + COLORS + COMMON) for _ in range(rng.randint(1, 5)))
    text = rng.choice(
        [f'Say "{words}".', f"Say {words}", f"Repeat after me: {words}", f'Repeat: "{words}"', f"Write: {words}"]
    )
    medium = "I repeat the words."
    return Question("words", f"echo {words}", text, words, _same("", medium, f"{medium} They are: {words}."))


KINDS: dict[Callable[[Random], Question], int] = {
    spell: 12,
    reverse: 14,
    length: 14,
    occurrences: 16,
    position: 12,
    opposite: 8,
    sort: 12,
    sort_numbers: 5,
    repeat: 4,
    echo: 4,
}


UNKNOWN_WORD = "I am only a small demo model, and I don't know that word."
_WITH_WORD = (
    "Spell {}.",
    "Reverse {}.",
    "How many letters are in {}?",
    "How many a's are in {}?",
    "What is the first letter of {}?",
    "What is the last letter of {}?",
    "What is the opposite of {}?",
    "Sort these words: {}, {}, {}.",
    "Sort {}, {} and {} alphabetically.",
    "What is {} backwards?",
    "Count the letters in {}.",
    "How do you spell {}?",
    "Put in alphabetical order: {}, {}, {}.",
)


def unknown_word(rng: Random, rare: Sequence[str]) -> Question:
    """A task on a word that the model has never seen."""
    form = rng.choice(_WITH_WORD)
    count = form.count("{}")
    words = [rng.choice(rare), *(rng.choice([rng.choice(rare), rng.choice(WORDS)]) for _ in range(count - 1))]
    rng.shuffle(words)
    text = form.format(*(_quoted(rng, word) if count == 1 else word for word in words))
    why = "I don't know this word."
    return Question(
        "words", f"unknown {text}", text, UNKNOWN_WORD, _same("", why, f"I look at the word. {why} So I say so.")
    )


def words(rng: Random, rare: Sequence[str]) -> Question:
    if rng.random() < 0.06:
        return unknown_word(rng, rare)
    return rng.choices(list(KINDS), weights=list(KINDS.values()))[0](rng)
