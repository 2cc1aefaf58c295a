"""Whatever the model writes, and however it is cut into pieces: who follows the events has what the response says."""

import functools
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.responses import sse

from chorus_cluster.gateway import events as ev
from chorus_cluster.gateway.responses.items import to_messages
from chorus_cluster.gateway.responses.models import ResponseTool
from chorus_cluster.gateway.responses.tools import read_tools
from chorus_cluster.gateway.responses.writer import ResponseWriter, split_events

PATCH = ResponseTool(type="custom", name="apply_patch")
EDIT = ResponseTool(type="custom", name="edit", format={"type": "grammar", "syntax": "regex", "definition": "a+"})
TEXT = st.text(max_size=8)
NAMES = st.sampled_from(["f", "apply_patch", "edit", "undeclared"])
Turn = tuple[str, list[str]]
TURNS = st.lists(
    st.tuples(st.sampled_from(["reasoning", "preamble", "answer", "call"]), st.lists(TEXT, min_size=1, max_size=4))
)


def model_events(turns: list[Turn], names: list[str]) -> list[ev.Event]:
    events: list[ev.Event] = []
    num_calls = 0
    for kind, texts in turns:
        if kind == "call":
            events.append(ev.ToolCallStart(num_calls, f"call_{num_calls}", names[num_calls % len(names)]))
            events += [ev.ToolCallArguments(num_calls, text) for text in texts]
            num_calls += 1
        else:
            said = {
                "reasoning": ev.Reasoning,
                "answer": ev.Answer,
                "preamble": functools.partial(ev.Answer, is_preamble=True),
            }
            if kind != "reasoning" and any(isinstance(event, ev.Answer) for event in events):
                events.append(ev.Break("\n\n", is_preamble=kind == "preamble"))
            events += [said[kind](text) for text in texts]
    return events


def followed(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The output, put together from the pieces alone, and held to what the ends say."""
    items: list[dict[str, Any]] = []
    for event in events:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert event["output_index"] == len(items)
            items.append(event["item"])
            continue
        item = items[event["output_index"]]
        assert event.get("item_id", item["id"]) == item["id"]
        if kind == "content_part.added":
            item["content"].append(event["part"])
        elif kind in ("reasoning_text.delta", "output_text.delta"):
            item["content"][event["content_index"]]["text"] += event["delta"]
        elif kind == "function_call_arguments.delta":
            item["arguments"] += event["delta"]
        elif kind == "custom_tool_call_input.delta":
            item["input"] += event["delta"]
        elif kind == "content_part.done":
            assert item["content"][event["content_index"]] == event["part"]
        elif kind == "output_item.done":
            done = event["item"]
            if done["type"] != "reasoning" or done["content"]:  # An empty one has no part in the end.
                assert {**item, "status": ""} == {**done, "status": ""}
            items[event["output_index"]] = event["item"]
    return items


@settings(max_examples=150, deadline=None)
@given(TURNS, st.lists(NAMES, min_size=1, max_size=3), st.booleans())
def test_events_tell_the_output(turns: list[Turn], names: list[str], is_cut: bool) -> None:
    toolbox = read_tools([PATCH, EDIT])
    writer, silent = (
        ResponseWriter("resp_" + "0" * 48, toolbox, sealed_reasoning=False, writes_events=writes)
        for writes in (True, False)
    )
    told = model_events(turns, names)
    written = writer.events(told) + writer.close(is_cut=is_cut)
    assert silent.events(told) + silent.close(is_cut=is_cut) == []
    assert silent.output == writer.output
    assert split_events("".join(written)) == written
    assert writer.num_events == len(written)
    if written:
        assert followed(sse("".join(written))) == json.loads(json.dumps(writer.output))
    # And it can be gone on from.
    to_messages(writer.output, toolbox)
    messages = [item for item in writer.output if item["type"] == "message"]
    phases = [item["phase"] for item in messages]
    assert ("commentary" in phases, "final_answer" in phases) == tuple(
        any(kind == told for told, _ in turns) for kind in ("preamble", "answer")
    )
    statuses = [item["status"] for item in writer.output if "status" in item]
    assert all(status == "completed" for status in statuses[:-1])
