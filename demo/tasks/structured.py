"""JSON on demand: facts of a sentence, a result, or a list, as a JSON object or array."""

import json
from random import Random

from demo.pools import CITIES, COLORS, COUNTRIES, DAYS, EVENTS, NAMES, SYMBOLS, WORDS
from demo.sample import Question


def _reasoning(keys: str) -> dict[str, str]:
    return {
        "low": "",
        "medium": f"The user wants JSON with {keys}.",
        "high": f"The user wants JSON with {keys}. I take the values from the text, and write only JSON.",
    }


def _and(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def _by_schema(rng: Random, sentence: str, values: dict[str, object], keys: list[str]) -> Question:
    """The keys stand in a response format instead of the question."""
    properties = {key: {"type": "integer" if isinstance(values[key], int) else "string"} for key in keys}
    schema: dict[str, object] = {"type": "object", "properties": properties, "required": keys}
    if rng.random() < 0.5:
        schema["additionalProperties"] = False
    text = rng.choice(["{}", "{}", "Extract the data: {}", "{} Reply in JSON.", "Give me this as JSON: {}"]).format(
        sentence
    )
    answer = json.dumps({key: values[key] for key in keys})
    return Question("json", f"json {answer}", text, answer, _reasoning(_and(keys)), schema)


def person(rng: Random) -> Question:
    name, age, city = rng.choice(NAMES), rng.randint(2, 99), rng.choice(CITIES)
    country, color = rng.choice(COUNTRIES), rng.choice(COLORS)
    values: dict[str, object] = {"name": name, "age": age, "city": city, "country": country, "color": color}
    parts = {
        "age": [f"is {age} years old", f"is {age}"],
        "city": [f"lives in {city}", f"works in {city}"],
        "country": [f"comes from {country}", f"was born in {country}"],
        "color": [f"likes {color}"],
    }
    told = rng.sample(sorted(parts), rng.choice([1, 2, 2, 3]))
    sentence = f"{name} {_and([rng.choice(parts[part]) for part in told])}."
    keys = ["name", *told]
    if rng.random() < 0.3:
        keys = rng.sample(keys, len(keys) - (rng.random() < 0.4 and len(keys) > 2))
    if rng.random() < 0.2:
        return _by_schema(rng, sentence, values, keys)
    listed = _and(keys) if rng.random() < 0.7 else ", ".join(keys)
    form = rng.choice(
        [
            "{s} Reply in JSON with the keys {k}.",
            "{s} Answer in JSON with keys {k}.",
            "Give me JSON with {k}: {s}",
            "Extract {k} as JSON: {s}",
            "Return a JSON object with {k}. {s}",
            "Turn this into JSON with the keys {k}: {s}",
            "{s} Write that as JSON with {k}.",
            "Output JSON ({k}): {s}",
        ]
    )
    answer = json.dumps({key: values[key] for key in keys})
    return Question("json", f"json {answer}", form.format(s=sentence, k=listed), answer, _reasoning(_and(keys)))


def event(rng: Random) -> Question:
    values: dict[str, object] = {
        "event": rng.choice(EVENTS),
        "day": rng.choice(DAYS[:7]),
        "hour": rng.randint(1, 12),
        "name": rng.choice(NAMES),
    }
    sentence = f"The {values['event']} with {values['name']} is on {values['day']} at {values['hour']}."
    keys = rng.sample(list(values), rng.choice([2, 3, 4]))
    if rng.random() < 0.2:
        return _by_schema(rng, sentence, values, keys)
    form = rng.choice(
        [
            "{s} Reply in JSON with the keys {k}.",
            "{s} Give me JSON with {k}.",
            "Extract {k} as JSON: {s}",
            "Return a JSON object with {k}. {s}",
            "{s} Answer in JSON with keys {k}.",
        ]
    )
    answer = json.dumps({key: values[key] for key in keys})
    return Question("json", f"json {answer}", form.format(s=sentence, k=_and(keys)), answer, _reasoning(_and(keys)))


def pairs(rng: Random) -> Question:
    pool = ["color", "size", "name", "count", "city", "price", "code", "type", "word", "level", "number", "id", "title"]
    made: dict[str, object] = {}
    for key in rng.sample(pool, rng.choice([1, 2, 2, 3])):
        made[key] = {
            "color": rng.choice(COLORS),
            "name": rng.choice(NAMES),
            "city": rng.choice(CITIES),
            "code": rng.choice(SYMBOLS),
            "type": rng.choice(WORDS),
            "word": rng.choice(WORDS),
            "title": rng.choice(WORDS),
        }.get(key, rng.randint(0, 999))
    told = _and([f"{key} {value}" for key, value in made.items()])
    form = rng.choice(
        [
            "Make a JSON object with {t}.",
            "Give me JSON with {t}.",
            "Write JSON: {t}",
            "As JSON: {t}",
            "Write a JSON object with {t}",
            "JSON please: {t}",
            "Put {t} in a JSON object.",
        ]
    )
    answer = json.dumps(made)
    return Question("json", f"json {answer}", form.format(t=told), answer, _reasoning(_and(list(made))))


def array(rng: Random) -> Question:
    if rng.random() < 0.3:
        items: list[object] = list(rng.sample(range(100), rng.randint(2, 4)))
    else:
        items = list(rng.sample(rng.choice([WORDS, COLORS, NAMES, CITIES]), rng.randint(2, 4)))
    told = _and([str(item) for item in items])
    form = rng.choice(
        [
            "Write {t} as a JSON array.",
            "Give me {t} as a JSON list.",
            "Make a JSON array of {t}.",
            "JSON array of {t}",
            "Return {t} as a JSON array.",
        ]
    )
    answer = json.dumps(items)
    return Question("json", f"json {answer}", form.format(t=told), answer, _reasoning("a list"))


def result(rng: Random) -> Question:
    a, b = rng.randint(0, 99), rng.randint(0, 99)
    if rng.random() < 0.5:
        a, b = max(a, b), min(a, b)
        sign, value = "-", a - b
    else:
        sign, value = "+", a + b
    key = rng.choice(["result", "answer", "value", "sum" if sign == "+" else "difference"])
    form = rng.choice(
        [
            "What is {e}? Answer in JSON with the key {k}.",
            "Compute {e} and reply in JSON with the key {k}.",
            "Give me JSON with the {k} of {e}.",
            "What is {e}? Reply in JSON with key {k}.",
        ]
    )
    answer = json.dumps({key: value})
    reasoning = _reasoning(key)
    reasoning["medium"] += f" {a} {sign} {b} = {value}."
    reasoning["high"] = f"The user wants JSON with {key}. {a} {sign} {b} = {value}. I write only JSON."
    return Question("json", f"json {a} {sign} {b}", form.format(e=f"{a} {sign} {b}", k=key), answer, reasoning)


def structured(rng: Random) -> Question:
    kinds = (person, event, pairs, array, result)
    return rng.choices(kinds, weights=(30, 15, 25, 15, 15))[0](rng)
