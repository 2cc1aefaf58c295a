"""Conversations are drawn the same way each time, and what is held out is never trained on."""

import itertools
import json
import re

import pytest
from demo.generator import TASK_WEIGHTS, Generator, Split, split_of
from demo.sample import ALWAYS_TRAINED, EFFORTS, Sample
from demo.tasks.arithmetic import add_steps, subtract_steps

RARE = ("bronze", "harbor", "meadow", "velvet")


def drawn(seed: int, split: Split, count: int) -> list[Sample]:
    return list(itertools.islice(Generator(seed, split, RARE), count))


def test_the_same_seed_draws_the_same_conversations() -> None:
    assert drawn(1, "train", 200) == drawn(1, "train", 200)
    assert drawn(1, "train", 200) != drawn(2, "train", 200)


def test_held_out_content_is_disjoint_from_training_content() -> None:
    trained, held_out = drawn(3, "train", 6000), drawn(3, "heldout", 2000)
    assert not {sample.key for sample in trained} & {sample.key for sample in held_out}
    assert {split_of(sample.key) for sample in held_out} == {"heldout"}
    assert {sample.task for sample in held_out} == set(TASK_WEIGHTS)


def test_the_plain_first_questions_are_trained() -> None:
    assert split_of(f"{ALWAYS_TRAINED}What is Chorus?") == "train"
    assert not any(sample.messages[-1].content == "What is Chorus?" for sample in drawn(4, "heldout", 3000))


def test_sums_are_right() -> None:
    pattern = re.compile(r"(\d+) ([+×/-]) (\d+) = (-?\d+)")
    operations = {"+": int.__add__, "-": int.__sub__, "×": int.__mul__, "/": int.__floordiv__}
    checked = 0
    for sample in drawn(5, "train", 3000):
        if sample.task == "arithmetic" and (found := pattern.fullmatch(sample.target.content)):
            a, sign, b, result = found.groups()
            assert operations[sign](int(a), int(b)) == int(result)
            checked += 1
    assert checked > 400


@pytest.mark.parametrize(("a", "b"), [(17, 25), (999, 1), (4096, 7), (0, 0), (58, 58)])
def test_columns_add_up(a: int, b: int) -> None:
    def value(steps: list[tuple[str, str]]) -> int:
        columns = [int(step.split(" = ")[1]) for _, step in steps]
        # Every column but the last keeps its last digit; the last keeps its carry too.
        digits = [column % 10 for column in columns[:-1]] + [columns[-1]]
        return sum(digit * 10**i for i, digit in enumerate(digits))

    assert value(add_steps(a, b)) == a + b
    assert value(subtract_steps(max(a, b), min(a, b))) == abs(a - b)


def test_calls_fit_the_declared_tool_and_take_their_arguments_from_the_question() -> None:
    calls = [sample for sample in drawn(6, "train", 4000) if sample.task == "tool_call"]
    for sample in calls:
        call = sample.target.tool_call
        assert call is not None
        tool = next(tool for tool in sample.tools if tool.name == call.name)
        arguments = json.loads(call.arguments)
        schema = tool.parameters or {"properties": {}, "required": []}
        assert set(schema["required"]) <= set(arguments) <= set(schema["properties"])
        for name, value in arguments.items():
            assert str(value).lower() in sample.messages[-1].content.lower(), sample
            assert isinstance(value, str if schema["properties"][name]["type"] == "string" else int)
    assert len(calls) > 400


def test_json_answers_are_json_with_the_keys_of_their_schema() -> None:
    with_schema = 0
    for sample in drawn(7, "train", 4000):
        if sample.task == "json":
            answer = json.loads(sample.target.content)
            if sample.schema is not None:
                assert list(answer) == sample.schema["required"]
                with_schema += 1
    assert with_schema > 10


def test_reasoning_grows_with_the_effort() -> None:
    lengths = {effort: 0 for effort in EFFORTS}
    for sample in drawn(8, "train", 3000):
        lengths[sample.effort] += len(sample.target.reasoning)
    assert lengths["low"] * 1.5 < lengths["medium"] and lengths["medium"] * 1.5 < lengths["high"]
