"""Draws conversations: a task, its wording, and what stands around it (instructions, tools, earlier turns, date).

A conversation's *key* names its content (the operands, the word, the tool call), and the hash of the key alone decides
whether it is for training or held out, so that nothing the model is examined on was trained on in other words.
"""

import datetime
import hashlib
from collections.abc import Iterator, Sequence
from random import Random
from typing import Literal

from demo import pools
from demo.sample import ALWAYS_TRAINED, EFFORTS, Effort, Message, Question, Sample, Target, Tool
from demo.tasks import chat
from demo.tasks.arithmetic import arithmetic
from demo.tasks.facts import facts
from demo.tasks.structured import structured
from demo.tasks.tools import Request, answer_target, call_target, declared_with, request, requested_again, unrelated
from demo.tasks.words import words

Split = Literal["train", "heldout"]
HELDOUT_SHARE = 0.06
FIRST_DAY = datetime.date(2025, 1, 1)
TASK_WEIGHTS = {
    "arithmetic": 24,
    "words": 18,
    "facts": 11,
    "chat": 11,
    "context": 3,
    "json": 9,
    "tool_call": 16,
    "tool_answer": 8,
}


def split_of(key: str) -> Split:
    digest = hashlib.blake2b(key.encode(), digest_size=4).digest()
    if key.startswith(ALWAYS_TRAINED):
        return "train"
    return "heldout" if int.from_bytes(digest, "big") < HELDOUT_SHARE * 2**32 else "train"


class Generator:
    """Draws samples of one split. `rare` are words of the vocabulary at large, which stand for what is not known; with
    `date` all conversations are of that day."""

    def __init__(self, seed: int | str, split: Split, rare: Sequence[str], date: datetime.date | None = None) -> None:
        self._rng = Random(f"{seed}-{split}")
        self._split = split
        self._rare = rare
        self._date = date

    def __iter__(self) -> Iterator[Sample]:
        while True:
            yield self.draw()

    def draw(self, task: str | None = None) -> Sample:
        while True:
            sample = self._draw(task or self._rng.choices(list(TASK_WEIGHTS), weights=list(TASK_WEIGHTS.values()))[0])
            if split_of(sample.key) == self._split:
                return sample

    def _draw(self, task: str) -> Sample:
        rng = self._rng
        effort: Effort = rng.choice(EFFORTS)
        date = self._date or FIRST_DAY + datetime.timedelta(days=rng.randrange(365 * 4))
        if task in ("tool_call", "tool_answer"):
            return self._tool_sample(task, effort, date)
        tools: tuple[Tool, ...] = ()
        if task == "context":
            tools = unrelated(rng, "context", "", 4) if rng.random() < 0.5 else ()
        question = self._question(task, effort, date, tools)
        if task != "context" and rng.random() < 0.22:
            kind = question.key.split()[0]
            tools = unrelated(rng, kind if kind in ("off", "need") else task, question.text, 3)
        tools = self._worded(tools)
        messages = (*self._opening(), *self._history(), Message("user", self._varied(question.text, task)))
        target = Target(question.reasoning[effort], question.answer)
        return Sample(task, question.key, messages, tools, effort, date, target, question.schema)

    def _question(self, task: str, effort: Effort, date: datetime.date, tools: Sequence[Tool]) -> Question:
        rng = self._rng
        if task == "chat":
            kind = rng.random()
            if kind < 0.45:
                return chat.small_talk(rng)
            return chat.off_topic(rng, self._rare) if kind < 0.85 else chat.needs_tool(rng)
        if task == "context":
            return chat.about_context(rng, date, effort, tools)
        if task == "words":
            return words(rng, self._rare)
        return {"arithmetic": arithmetic, "facts": facts, "json": structured}[task](rng)

    def _tool_sample(self, task: str, effort: Effort, date: datetime.date) -> Sample:
        rng = self._rng
        asked = request(rng)
        tools = declared_with(rng, asked.tool, asked.purpose, rng.choice([0, 1, 2, 4]))
        tools = self._worded(tools)
        messages = [*self._opening(), *self._history(), Message("user", self._varied(asked.text, task))]
        call = call_target(asked, rng.choice([effort, "low"]))
        key = f"call {asked.tool.name} {sorted(asked.arguments.items())}"
        if task == "tool_call":
            if len(asked.arguments) == 1 and rng.random() < 0.12:
                messages = [*messages[:-1], *self._followed_up(asked)]
            elif rng.random() < 0.12:
                messages[-1:] = [*self._finished_loop(), messages[-1]]
            return Sample(task, key, tuple(messages), tools, effort, date, call_target(asked, effort))
        messages.append(Message("assistant", reasoning=call.reasoning, tool_call=call.tool_call))
        messages.append(Message("tool", asked.result, name=asked.tool.name))
        return Sample(task, f"{key} {asked.result}", tuple(messages), tools, effort, date, answer_target(asked, effort))

    def _worded(self, tools: tuple[Tool, ...]) -> tuple[Tool, ...]:
        """Tools as strangers describe them: now and then with words that mean nothing to the model."""
        rng = self._rng
        return tuple(self._reworded(tool) if rng.random() < 0.15 else tool for tool in tools)

    def _reworded(self, tool: Tool) -> Tool:
        rng = self._rng

        def lengthened(text: str) -> str:
            tail = " ".join(rng.choice(rng.choice([self._rare, pools.COMMON])) for _ in range(rng.randint(1, 7)))
            end = rng.choice(["", ".", ".", f", e.g. {rng.choice(pools.CITIES)}", f" (e.g. {rng.randint(1, 99)})"])
            return f"{text} {tail}{end}".strip()

        parameters = None
        if tool.parameters is not None:
            properties = {
                name: value | {"description": lengthened(value.get("description", ""))} if rng.random() < 0.6 else value
                for name, value in tool.parameters["properties"].items()
            }
            parameters = {**tool.parameters, "properties": properties}
        return Tool(tool.name, lengthened(tool.description), parameters)

    def _followed_up(self, asked: Request) -> list[Message]:
        """The question asked about something else first, answered, and then this: "And in Rome?"."""
        value = str(next(iter(asked.arguments.values())))
        before = next(
            other for other in self._others(asked) if value.lower() != str(next(iter(other.arguments.values()))).lower()
        )
        place = "in " if asked.purpose in ("weather", "time") and self._rng.random() < 0.6 else ""
        text = self._rng.choice(
            [f"And {place}{value}?", f"What about {place}{value}?", f"And {place}{value}", f"How about {place}{value}?"]
        )
        return [*self._loop(before), Message("user", text)]

    def _others(self, asked: Request) -> Iterator[Request]:
        """Requests with the same tool and the same arguments, other values."""
        while True:
            yield requested_again(self._rng, asked)

    def _finished_loop(self) -> list[Message]:
        """An earlier question that a tool answered."""
        return self._loop(request(self._rng))

    def _loop(self, asked: Request) -> list[Message]:
        call = call_target(asked, "low")
        return [
            Message("user", asked.text), Message("assistant", tool_call=call.tool_call),
            Message("tool", asked.result, name=asked.tool.name), Message("assistant", asked.answer),
        ]  # fmt: skip

    def _opening(self) -> list[Message]:
        rng = self._rng
        if rng.random() < 0.65:
            return []
        text = rng.choice(pools.INSTRUCTIONS)
        if rng.random() < 0.35:
            text = " ".join(rng.choice(self._rare) for _ in range(rng.randint(2, 14))).capitalize() + "."
            if rng.random() < 0.5:
                text = f"You are {text[0].lower()}{text[1:]}"
        return [Message("developer", text)]

    def _history(self) -> list[Message]:
        rng = self._rng
        if rng.random() < 0.8:
            return []
        turns: list[Message] = []
        for _ in range(rng.choice([1, 1, 2])):
            task = rng.choice(["arithmetic", "words", "facts", "chat", "chat", "json"])
            question = self._question(task, "low", FIRST_DAY, ())
            if question.schema or split_of(question.key) != "train":
                continue
            turns += [Message("user", question.text), Message("assistant", question.answer)]
        return turns

    def _varied(self, text: str, task: str) -> str:
        """How people type: no capital, no full stop, a greeting before, a word of thanks after, a stray word."""
        rng = self._rng
        if rng.random() < 0.15 and text[:2] not in ("I ", "I'"):
            text = text[0].lower() + text[1:]
        if rng.random() < 0.15 and text[-1:] in ".?!":
            text = text[:-1]
        if task in ("chat", "facts", "arithmetic", "context") and rng.random() < 0.07:
            text = text.lower()
        if task in ("chat", "facts"):
            return text
        if rng.random() < 0.08:
            text = rng.choice(["Hi! ", "Hello, ", "Hey, ", "Please: ", "Question: ", "Now: ", "And: ", "OK. "]) + text
        if rng.random() < 0.06 and text[-1:] in ".?!":
            text += rng.choice([" Thanks!", " Please.", " Thank you.", " Be quick."])
        if rng.random() < 0.03 and task == "arithmetic":
            text = f"{rng.choice(self._rare)} {rng.choice(self._rare)}, {text}"
        return text
