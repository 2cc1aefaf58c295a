"""Sums, differences, products, quotients and comparisons, with column-wise working that grows with the effort."""

from random import Random

from demo.pools import NAMES
from demo.sample import ALWAYS_TRAINED, Question

COLUMNS = ("Ones", "Tens", "Hundreds", "Thousands")
THINGS = ["apples", "books", "coins", "eggs", "cards", "balls", "stars", "tickets", "pens", "shells"]


def _digits(value: int) -> list[int]:
    return [int(digit) for digit in reversed(str(value))]


def _pad(digits: list[int], length: int) -> list[int]:
    return digits + [0] * (length - len(digits))


def add_steps(a: int, b: int) -> list[tuple[str, str]]:
    """The columns of a + b from the ones up: (column, "7 + 5 = 12")."""
    length = max(len(str(a)), len(str(b)))
    steps, carry = [], 0
    for i, (x, y) in enumerate(zip(_pad(_digits(a), length), _pad(_digits(b), length), strict=True)):
        total = x + y + carry
        terms = f"{x} + {y} + 1" if carry else f"{x} + {y}"
        steps.append((COLUMNS[i], f"{terms} = {total}"))
        carry = total // 10
    return steps


def subtract_steps(a: int, b: int) -> list[tuple[str, str]]:
    """The columns of a - b for a >= b, borrowing where needed."""
    length = len(str(a))
    steps, borrow = [], 0
    for i, (x, y) in enumerate(zip(_digits(a), _pad(_digits(b), length), strict=True)):
        top = x + 10 if x - y - borrow < 0 else x
        terms = f"{top} - {y} - 1" if borrow else f"{top} - {y}"
        steps.append((COLUMNS[i], f"{terms} = {top - y - borrow}"))
        borrow = int(top != x)
    return steps


def _spelled(steps: list[tuple[str, str]]) -> str:
    return " ".join(f"{column}: {step}." for column, step in steps)


def _compact(steps: list[tuple[str, str]]) -> str:
    return ", ".join(step for _, step in steps) + "."


def _ask(rng: Random, symbolic: str, worded: list[str]) -> str:
    if rng.random() < 0.55:
        templates = ["What is {}?"] * 4 + [
            "What's {}?",
            "{}",
            "{} = ?",
            "{}=?",
            "Calculate {}.",
            "Compute {}",
            "How much is {}?",
            "Solve {}",
            "{}?",
            "Please calculate {}.",
            "Can you work out {}?",
            "Tell me the result of {}.",
            "Evaluate {}.",
            "And {}?",
        ]
        if rng.random() < 0.25:
            symbolic = symbolic.replace(" ", "")
        return rng.choice(templates).format(symbolic)
    return rng.choice(worded)


def _operand(rng: Random) -> int:
    low, high = rng.choices([(10, 99), (100, 999), (0, 12), (1000, 9999)], weights=(52, 26, 17, 5))[0]
    return rng.randint(low, high)


def _key(kind: str, a: int, b: int) -> str:
    """The tables that children learn by heart are not held out."""
    return f"{ALWAYS_TRAINED if max(a, b) <= 12 else ''}{kind} {a} {b}"


def addition(rng: Random) -> Question:
    a, b = _operand(rng), _operand(rng)
    thing, name = rng.choice(THINGS), rng.choice(NAMES)
    text = _ask(
        rng,
        f"{a} + {b}",
        [
            f"What is {a} plus {b}?",
            f"Add {a} and {b}.",
            f"What is the sum of {a} and {b}?",
            f"{a} plus {b}",
            f"Add {a} to {b}.",
            f"How much is {a} plus {b}?",
            f"Sum of {a} and {b}?",
            f"{name} has {a} {thing} and gets {b} more. How many {thing} does {name} have now?",
            f"I have {a} {thing} and buy {b} more. How many do I have?",
        ],
    )
    steps, total = add_steps(a, b), a + b
    small = max(a, b) < 100
    work = f"{_spelled(steps)} So {a} + {b} = {total}."
    reasoning = {
        "low": "" if small else _compact(steps),
        "medium": work,
        "high": f"I add {a} and {b}. {work} Check: {total} - {b} = {a}. That is right.",
    }
    return Question("arithmetic", _key("add", min(a, b), max(a, b)), text, f"{a} + {b} = {total}", reasoning)


def subtraction(rng: Random) -> Question:
    a, b = _operand(rng), _operand(rng)
    if a < b and rng.random() < 0.8:
        a, b = b, a
    thing, name = rng.choice(THINGS), rng.choice(NAMES)
    worded = [
        f"What is {a} minus {b}?",
        f"Subtract {b} from {a}.",
        f"{a} minus {b}",
        f"How much is {a} minus {b}?",
        f"Take {b} away from {a}.",
    ]
    if a >= b:
        worded += [
            f"{name} has {a} {thing} and gives away {b}. How many {thing} are left?",
            f"I had {a} {thing} and lost {b}. How many do I have?",
            f"What is the difference between {a} and {b}?",
        ]
    text = _ask(rng, f"{a} - {b}", worded)
    steps, result = subtract_steps(max(a, b), min(a, b)), a - b
    sign = "" if a >= b else f"{a} is less than {b}, so the result is negative. "
    work = f"{sign}{_spelled(steps)} So {a} - {b} = {result}."
    reasoning = {
        "low": "" if max(a, b) < 100 else _compact(steps),
        "medium": work,
        "high": f"I subtract {b} from {a}. {work} Check: {result} + {b} = {a}. That is right.",
    }
    return Question("arithmetic", _key("subtract", a, b), text, f"{a} - {b} = {result}", reasoning)


def multiplication(rng: Random) -> Question:
    kind = rng.random()
    if kind < 0.4:
        a, b = rng.randint(0, 12), rng.randint(0, 12)
    elif kind < 0.75:
        a, b = rng.randint(11, 99), rng.randint(2, 9)
    else:
        a, b = rng.randint(11, 99), rng.randint(11, 99)
    if kind < 0.75 and rng.random() < 0.5:
        a, b = b, a
    sign = rng.choice(["*", "*", "×", "x"])
    text = _ask(
        rng,
        f"{a} {sign} {b}",
        [
            f"What is {a} times {b}?",
            f"Multiply {a} by {b}.",
            f"Multiply {a} and {b}.",
            f"{a} times {b}",
            f"What is the product of {a} and {b}?",
            f"How much is {a} times {b}?",
            f"There are {a} boxes with {b} {rng.choice(THINGS)} each. How many are there in all?",
        ],
    )
    product = a * b
    work = _product_work(a, b)
    long = work or f"{a} × {b} = {product}."
    check = f"{product} / {b} = {a}" if b else f"{a} × 0 = 0"
    reasoning = {
        "low": work,
        "medium": long,
        "high": f"I multiply {a} by {b}. {long} Check: {check}. That is right.",
    }
    return Question("arithmetic", _key("multiply", min(a, b), max(a, b)), text, f"{a} × {b} = {product}", reasoning)


def _product_work(a: int, b: int) -> str:
    """The work of a two-digit factor: split it into tens and ones; add the parts by columns where both are large."""
    if max(a, b) <= 12:
        return ""
    if min(a, b) <= 10:
        large, small = max(a, b), min(a, b)
        tens, ones = large // 10 * 10, large % 10
        return f"{tens} × {small} = {tens * small}, {ones} × {small} = {ones * small}, in all {a * b}."
    tens, ones = b // 10 * 10, b % 10
    first, second = a * tens, a * ones
    columns = _compact(add_steps(first, second))
    return f"{a} × {tens} = {first}, {a} × {ones} = {second}, {first} + {second}: {columns[:-1]}, in all {a * b}."


def division(rng: Random) -> Question:
    b, quotient = rng.randint(2, 12), rng.randint(1, 40)
    a = b * quotient
    thing = rng.choice(THINGS)
    text = _ask(
        rng,
        f"{a} {rng.choice(['/', '/', '÷', ':'])} {b}",
        [
            f"What is {a} divided by {b}?",
            f"Divide {a} by {b}.",
            f"{a} divided by {b}",
            f"How often does {b} go into {a}?",
            f"Share {a} {thing} among {b} people. How many does each get?",
        ],
    )
    tens, ones = quotient // 10 * 10, quotient % 10
    tried = ", ".join(f"{b} × {ten} = {b * ten}" for ten in range(10, tens + 1, 10))
    work = f"{tried}, {a} - {b * tens} = {b * ones}, {b} × {ones} = {b * ones}, in all {quotient}."
    work = work if quotient > 12 else f"{b} × {quotient} = {a}."
    reasoning = {
        "low": work if quotient > 12 else "",
        "medium": f"{work} So {a} / {b} = {quotient}.",
        "high": f"I divide {a} by {b}. {work} So {a} / {b} = {quotient}. Check: {quotient} × {b} = {a}. That is right.",
    }
    return Question(
        "arithmetic",
        f"{ALWAYS_TRAINED if quotient <= 12 else ''}divide {a} {b}",
        text,
        f"{a} / {b} = {quotient}",
        reasoning,
    )


def comparison(rng: Random) -> Question:
    a, b = rng.sample(range(1, 1000), 2) if rng.random() < 0.5 else rng.sample(range(1, 100), 2)
    if rng.random() < 0.4:
        parity = "even" if a % 2 == 0 else "odd"
        text = rng.choice([f"Is {a} even or odd?", f"Is {a} odd or even?", f"Even or odd: {a}?"])
        why = f"The last digit of {a} is {a % 10}. {a % 10} is {parity}."
        reasoning = {"low": "", "medium": why, "high": f"I look at the last digit. {why} So {a} is {parity}."}
        return Question("arithmetic", f"parity {a}", text, f"{a} is {parity}.", reasoning)
    largest = rng.random() < 0.6
    word = rng.choice(["larger", "bigger", "greater"] if largest else ["smaller", "less"])
    text = rng.choice(
        [f"Which is {word}, {a} or {b}?", f"Which number is {word}: {a} or {b}?", f"What is {word}, {a} or {b}?"]
    )
    answer, other = (max(a, b), min(a, b)) if largest else (min(a, b), max(a, b))
    relation = "more" if largest else "less"
    why = f"{answer} is {relation} than {other}."
    reasoning = {"low": "", "medium": why, "high": f"I compare {a} and {b}. {why} So the answer is {answer}."}
    return Question("arithmetic", f"compare {word} {a} {b}", text, f"{answer} is {word}.", reasoning)


def chain(rng: Random) -> Question:
    """Three small numbers, from left to right."""
    a, b, c = (rng.randint(1, 60) for _ in range(3))
    minus = c < a + b and rng.random() < 0.4
    sign, first = "-" if minus else "+", a + b
    total = first - c if minus else first + c
    text = _ask(rng, f"{a} + {b} {sign} {c}", [f"What is {a} plus {b} {'minus' if minus else 'plus'} {c}?"])
    work = f"{a} + {b} = {first}. {first} {sign} {c} = {total}."
    reasoning = {"low": work, "medium": work, "high": f"I go from left to right. {work} So the result is {total}."}
    return Question("arithmetic", f"chain {a} {b} {sign} {c}", text, f"{a} + {b} {sign} {c} = {total}", reasoning)


def arithmetic(rng: Random) -> Question:
    kinds = (addition, subtraction, multiplication, division, comparison, chain)
    return rng.choices(kinds, weights=(34, 26, 22, 10, 8, 6))[0](rng)
