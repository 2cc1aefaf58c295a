"""Tools with drawn schemas: calls whose arguments stand in the question, and answers from what a tool gave back.

Half of the tools belong to a family with a purpose; the others are made of a verb, a noun and a few fields, so that a
name or a parameter means nothing unless the schema is read.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from demo import pools
from demo.sample import Effort, Target, Tool, ToolCall
from demo.tasks.tool_families import FAMILIES
from demo.tasks.tool_parts import Family


@dataclass(frozen=True, slots=True)
class Request:
    """A question that one tool answers."""

    tool: Tool
    arguments: dict[str, Any]
    text: str
    purpose: str
    # What the tool gives back.
    result: str
    # What the assistant then says.
    answer: str


def _schema(rng: Random, fields: Sequence[tuple[str, str, str, tuple[str, ...], bool]]) -> dict[str, Any]:
    """A JSON schema from (name, type, description, enum, required)."""
    described = rng.random() < 0.7
    properties: dict[str, Any] = {}
    for name, kind, about, enum, _ in fields:
        properties[name] = {"type": kind}
        if described and about:
            properties[name]["description"] = about
        if enum:
            properties[name]["enum"] = list(enum)
    return {"type": "object", "properties": properties, "required": [name for name, *_, required in fields if required]}


def family_request(rng: Random, family: Family) -> Request:
    question = rng.choice(family.questions.split("|"))
    named = [i for i in range(len(family.params)) if f"{{{i}}}" in question]
    always = [i for i in range(len(family.params)) if all(f"{{{i}}}" in text for text in family.questions.split("|"))]
    # What a question names in passing ("today") may have no parameter; what has one may not be named.
    declared = [i for i in range(len(family.params)) if i in always or rng.random() < (0.65 if i in named else 0.5)]
    order = rng.sample(declared, len(declared)) if rng.random() < 0.3 else declared
    names: dict[int, str] = {}
    for i in order:
        free = [name for name in family.params[i].names.split("|") if name not in names.values()]
        names[i] = rng.choice(free)
    values = [param.draw(rng) for param in family.params]
    while family.purpose in ("route", "flight", "convert") and len(set(map(str, values))) < len(values):
        values = [param.draw(rng) for param in family.params]
    fields = [
        (
            names[i],
            family.params[i].type,
            rng.choice(family.params[i].about.split("|")),
            family.params[i].enum,
            i in always,
        )
        for i in order
    ]
    tool = Tool(rng.choice(family.names.split("|")), rng.choice(family.about.split("|")), _schema(rng, fields))
    arguments = {names[i]: values[i] for i in order if i in named}
    text = question.format(*values)
    result, answer = _family_result(rng, family, tool.name, values)
    return Request(tool, arguments, text, family.purpose, result, answer)


def _family_result(rng: Random, family: Family, name: str, values: list[Any]) -> tuple[str, str]:
    if rng.random() < 0.06:
        return _failure(rng)
    drawn = {rng.choice(keys.split("|")): draw(rng) for keys, draw in family.results}
    if not drawn or rng.random() < 0.15:
        text = rng.choice(pools.MESSAGES + pools.WORDS + pools.CONDITIONS)
        return text, f"{name} says: {text}"
    result = json.dumps(drawn)
    held = list(drawn.values())
    spoken = {
        "weather": lambda: f"It is {held[0]} degrees and {held[1]} in {values[0]}.",
        "time": lambda: f"It is {held[0]} in {values[0]}.",
        "calculator": lambda: f"{values[0]} = {held[0]}",
        "convert": lambda: f"{values[0]} {values[1]} are {held[0]} {values[2]}.",
        "population": lambda: f"{values[0]} has {held[0]} million people.",
    }.get(family.purpose)
    return result, spoken() if spoken else told(name, drawn)


def _failure(rng: Random) -> tuple[str, str]:
    reason = rng.choice(
        ["not found", "timeout", "no access", "not available", "unknown name", "service is down", "invalid input"]
    )
    return json.dumps({"error": reason}), f"The tool failed: {reason}."


def told(name: str, values: dict[str, Any]) -> str:
    """The answer for a result object of any kind."""
    return f"{name} says: " + ", ".join(f"{key} is {value}" for key, value in values.items()) + "."


def _free_value(rng: Random, kind: str) -> Any:
    if kind == "integer":
        return rng.randint(0, 999) if rng.random() < 0.8 else rng.randint(1000, 99999)
    pool = rng.choice(
        [pools.NAMES, pools.CITIES, pools.WORDS, pools.COLORS, pools.SYMBOLS, pools.DAYS, pools.COUNTRIES, pools.THINGS]
    )
    value = rng.choice(pool)
    if rng.random() < 0.25:
        value = rng.choice(pools.COMMON)
    if rng.random() < 0.15:
        value = f"{value} {rng.choice(pools.WORDS + pools.COMMON)}"
    return value


def requested_again(rng: Random, asked: Request) -> Request:
    """A request like `asked`, which has one argument, with another value in the same words."""
    ((name, value),) = asked.arguments.items()
    family = next((family for family in FAMILIES if family.purpose == asked.purpose), None)
    if family is None:
        other = _free_value(rng, "integer" if isinstance(value, int) else "string")
    else:
        other = next(p for p in family.params if name in p.names.split("|")).draw(rng)
    result, answer = _free_result(rng, asked.tool.name)
    return replace(
        asked, arguments={name: other}, text=asked.text.replace(str(value), str(other)), result=result, answer=answer
    )


def free_tool(rng: Random) -> tuple[Tool, str, str, list[str]]:
    """A tool made of a verb, a noun and fields: (tool, verb, noun, field names)."""
    verb, noun = rng.choice(pools.VERBS), rng.choice(pools.NOUNS)
    style = rng.random()
    name = (
        f"{verb}_{noun}"
        if style < 0.75
        else f"{verb}{noun.capitalize()}"
        if style < 0.88
        else f"{verb}_{noun}s"
        if style < 0.94
        else verb
    )
    names: list[str] = []
    for field in rng.sample(pools.FIELDS, rng.choice([1, 1, 1, 2, 2, 2, 3, 3]) if rng.random() < 0.95 else 0):
        names.append(rng.choice([field, field, f"{noun}_{field}", f"{rng.choice(pools.NOUNS)}_{field}"]))
    article = rng.choice(["an" if noun[0] in "aeiou" else "a", "the"])
    about = rng.choice([f"{verb.capitalize()} {article} {noun}", f"{verb} {noun}", ""])
    if names and rng.random() < 0.25:
        about = f"{verb.capitalize()} {article} {noun} by {names[0]}"
    fields = [
        (
            field,
            rng.choice(["integer", "string", "string"]),
            rng.choice(["", f"The {field}", f"{field} of the {noun}"]),
            (),
            True,
        )
        for field in names
    ]
    return Tool(name, about, _schema(rng, fields) if fields else None), verb, noun, names


def free_request(rng: Random) -> Request:
    tool, verb, noun, names = free_tool(rng)
    properties = tool.parameters["properties"] if tool.parameters else {}
    arguments = {name: _free_value(rng, properties[name]["type"]) for name in names}
    listed = [f"{name} {value}" for name, value in arguments.items()]
    equal = ", ".join(f"{name}={value}" for name, value in arguments.items())
    if not names:
        forms = [
            f"{verb.capitalize()} the {noun}.",
            f"Call {tool.name}.",
            f"Please {verb} the {noun}.",
            f"Use {tool.name}.",
        ]
        result, answer = _free_result(rng, tool.name)
        return Request(tool, {}, rng.choice(forms), f"{verb} {noun}", result, answer)
    joined = listed[0] if len(listed) == 1 else ", ".join(listed[:-1]) + " and " + listed[-1]
    forms = [
        f"{verb.capitalize()} the {noun} with {joined}.",
        f"Use {tool.name} with {joined}.",
        f"Call {tool.name} with {joined}.",
        f"{verb.capitalize()} {noun}: {joined}",
        f"Please {verb} the {noun} with {joined}.",
        f"Call {tool.name}({equal})",
        f"Can you {verb} the {noun} with {joined}?",
        f"I want to {verb} a {noun}: {equal}",
    ]
    if len(names) == 1:
        value = arguments[names[0]]
        forms += [
            f"{verb.capitalize()} {noun} {value}.",
            f"{verb.capitalize()} the {noun} {value}",
            f"Please {verb} {noun} {value}.",
            f"Use {tool.name} for {value}.",
        ]
    result, answer = _free_result(rng, tool.name)
    return Request(tool, arguments, rng.choice(forms), f"{verb} {noun}", result, answer)


def _free_result(rng: Random, name: str) -> tuple[str, str]:
    if rng.random() < 0.08:
        return _failure(rng)
    if rng.random() < 0.2:
        text = rng.choice(pools.MESSAGES + pools.WORDS)
        return text, f"{name} says: {text}"
    drawn = {
        field: _free_value(rng, rng.choice(["integer", "string"]))
        for field in rng.sample(pools.FIELDS, rng.choice([1, 1, 2, 3]))
    }
    return json.dumps(drawn), told(name, drawn)


def request(rng: Random) -> Request:
    asked = family_request(rng, rng.choice(FAMILIES)) if rng.random() < 0.6 else free_request(rng)
    if rng.random() >= 0.05 or asked.text != asked.text.replace(asked.tool.name, ""):
        return asked
    # Typed without capitals: the arguments follow the question.
    arguments = {key: value.lower() if isinstance(value, str) else value for key, value in asked.arguments.items()}
    keys = all(key == key.lower() for key in arguments)
    return replace(asked, text=asked.text.lower(), arguments=arguments, answer=asked.answer) if keys else asked


# For each kind of question the families that it could be meant for, and that therefore can't stand by unused.
MEANT_FOR = {
    "arithmetic": {"calculator"},
    "words": {"define", "translate", "search"},
    "facts": {"define", "search"},
    "json": {"calculator", "calendar"},
    "context": {"time", "calendar"},
    "chat": set[str](),
    "off": {
        "calculator",
        "define",
        "email",
        "flight",
        "message",
        "music",
        "population",
        "route",
        "search",
        "time",
        "translate",
        "weather",
    },
    "need": {family.purpose for family in FAMILIES}
    - {"convert", "define", "dice", "heating", "population", "translate"},
}


def declared_with(rng: Random, tool: Tool, purpose: str, most: int) -> tuple[Tool, ...]:
    """`tool` in random order with up to `most` others, none of the same purpose or name."""
    families = [family for family in FAMILIES if family.purpose not in (purpose, "calculator")]
    return _mixed(rng, [tool], families, purpose, rng.randint(0, most))


def unrelated(rng: Random, kind: str, text: str, most: int) -> tuple[Tool, ...]:
    """Up to `most` tools that don't help with the question `text` of a kind in MEANT_FOR."""
    families = [family for family in FAMILIES if family.purpose not in MEANT_FOR[kind]]
    return _mixed(rng, [], families, text, rng.randint(1, most))


def _mixed(rng: Random, tools: list[Tool], families: list[Family], avoid: str, count: int) -> tuple[Tool, ...]:
    for _ in range(count):
        if rng.random() < 0.65:
            other = family_request(rng, rng.choice(families)).tool
        else:
            other, _, noun, _ = free_tool(rng)
            if noun in avoid:
                continue
        if all(other.name != known.name and other.description != known.description for known in tools):
            tools.append(other)
    rng.shuffle(tools)
    return tuple(tools)


def call_target(asked: Request, effort: Effort) -> Target:
    values = ", ".join(f"{key} {value}" for key, value in asked.arguments.items()) or "no arguments"
    reasoning = {
        "low": "",
        "medium": f"I call {asked.tool.name} with {values}.",
        "high": f"The user asks for something that {asked.tool.name} can do. The text gives {values}. I call "
        f"{asked.tool.name} with that.",
    }
    return Target(reasoning[effort], tool_call=ToolCall(asked.tool.name, json.dumps(asked.arguments)))


def answer_target(asked: Request, effort: Effort) -> Target:
    reasoning = {
        "low": "",
        "medium": f"{asked.tool.name} has answered.",
        "high": f"{asked.tool.name} has answered. I tell the user what it says, and add nothing.",
    }
    return Target(reasoning[effort], content=asked.answer)
