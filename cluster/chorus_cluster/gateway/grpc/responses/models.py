"""The objects and events of /v1/responses as messages of `chorus.v1`.

What these say is made in one place, for both protocols: `body.py` and `writer.py`. Left out is what is always the same
(docs/api.md).
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

from chorus_cluster.gateway.grpc.responses import names
from chorus_cluster.gateway.grpc.responses.tools import text_format_to_pb, tool_choice_to_pb, tool_to_pb
from chorus_cluster.gateway.responses.body import Body
from chorus_cluster.gateway.responses.items import Item
from chorus_protos.v1 import chat_pb2
from chorus_protos.v1 import responses_pb2 as pb

_UINT32_MAX: Final = 2**32 - 1


def response_to_pb(body: Body) -> pb.Response:
    """The response object."""
    error, incomplete, usage = body["error"], body["incomplete_details"], body["usage"]
    max_tool_calls = body["max_tool_calls"]
    return pb.Response(
        id=body["id"],
        created_at=body["created_at"],
        status=names.STATUSES[body["status"]],
        completed_at=body["completed_at"],
        error=error and pb.ResponseError(code=names.ERROR_CODES[error["code"]], message=error["message"]),
        incomplete_details=incomplete and pb.IncompleteDetails(reason=names.INCOMPLETE_REASONS[incomplete["reason"]]),
        output=map(item_to_pb, body["output"]),
        usage=usage and _usage(usage),
        store=body["store"],
        model=body["model"],
        instructions=body["instructions"],
        previous_response_id=body["previous_response_id"],
        background=body["background"],
        tools=map(tool_to_pb, body["tools"]),
        tool_choice=tool_choice_to_pb(body["tool_choice"]),
        reasoning_effort=names.EFFORTS[body["reasoning"]["effort"]],
        text_format=text_format_to_pb(body["text"]["format"]),
        max_output_tokens=body["max_output_tokens"],
        top_logprobs=body["top_logprobs"],
        truncation=names.TRUNCATIONS[body["truncation"]],
        metadata=body["metadata"],
        temperature=body["temperature"],
        top_p=body["top_p"],
        # Beside a priority it isn't looked at.
        service_tier=names.SERVICE_TIERS.get(body["service_tier"], pb.SERVICE_TIER_UNSPECIFIED),
        parallel_tool_calls=body["parallel_tool_calls"],
        # JSON has larger numbers, and no meaning for them.
        max_tool_calls=max_tool_calls and min(max_tool_calls, _UINT32_MAX),
        prompt_cache_key=body.get("prompt_cache_key", ""),
        safety_identifier=body.get("safety_identifier", ""),
        user=body.get("user", ""),
    )


def _usage(usage: Body) -> pb.ResponseUsage:
    return pb.ResponseUsage(
        input_tokens=usage["input_tokens"],
        cached_tokens=usage["input_tokens_details"]["cached_tokens"],
        output_tokens=usage["output_tokens"],
        reasoning_tokens=usage["output_tokens_details"]["reasoning_tokens"],
        total_tokens=usage["total_tokens"],
    )


def item_to_pb(item: Item) -> pb.ResponseItem:
    """An item of an output or of an input."""
    kind: str = item["type"]
    held: Any = _ITEMS[kind](item)
    status = names.ITEM_STATUSES[item["status"]] if "status" in item else pb.ITEM_STATUS_UNSPECIFIED
    return pb.ResponseItem(id=item["id"], status=status, **{kind: held})


def _call(item: Item) -> Body:
    return {"call_id": item["call_id"], "name": item["name"], "namespace": item.get("namespace")}


_ITEMS: "Final[dict[str, Callable[[Item], Any]]]" = {
    "message": lambda item: pb.MessageItem(
        role=names.ROLES[item["role"]],
        content=map(_part, item["content"]),
        phase=names.PHASES[item["phase"]] if "phase" in item else pb.MESSAGE_PHASE_UNSPECIFIED,
    ),
    "reasoning": lambda item: pb.ReasoningItem(
        content=map(_part, item["content"]), encrypted_content=item.get("encrypted_content", "")
    ),
    "function_call": lambda item: pb.FunctionCallItem(arguments=item["arguments"], **_call(item)),
    "custom_tool_call": lambda item: pb.CustomToolCallItem(input=item["input"], **_call(item)),
    "function_call_output": lambda item: pb.FunctionCallOutputItem(call_id=item["call_id"], output=item["output"]),
    "custom_tool_call_output": lambda item: pb.CustomToolCallOutputItem(call_id=item["call_id"], output=item["output"]),
}


def _part(part: Item) -> pb.ContentPart:
    if part["type"] == "output_text":
        return pb.ContentPart(output_text=pb.OutputText(text=part["text"], logprobs=_logprobs(part["logprobs"])))
    if part["type"] == "reasoning_text":
        return pb.ContentPart(reasoning_text=part["text"])
    return pb.ContentPart(input_text=part["text"])


def _logprobs(entries: Iterable[Body]) -> list[chat_pb2.ContentLogprob]:
    return [
        chat_pb2.ContentLogprob(sampled=_candidate(entry), top=map(_candidate, entry["top_logprobs"]))
        for entry in entries
    ]


def _candidate(entry: Body) -> chat_pb2.TokenLogprobEntry:
    return chat_pb2.TokenLogprobEntry(
        token=entry["token"], logprob=entry["logprob"], token_bytes=bytes(entry.get("bytes", ()))
    )


def event_to_pb(event: Body) -> pb.ResponseEvent:
    """One event."""
    # "response.output_item.added" is the field output_item_added.
    field = event["type"].removeprefix("response.").replace(".", "_")
    held: Any = _EVENTS[field](event)
    return pb.ResponseEvent(sequence_number=event["sequence_number"], **{field: held})


def _in_item(event: Body) -> dict[str, Any]:
    return {"item_id": event["item_id"], "output_index": event["output_index"]}


def _in_part(event: Body) -> dict[str, Any]:
    return _in_item(event) | {"content_index": event["content_index"]}


def _response(event: Body) -> pb.Response:
    return response_to_pb(event["response"])


def _output_item(event: Body) -> pb.OutputItemEvent:
    return pb.OutputItemEvent(output_index=event["output_index"], item=item_to_pb(event["item"]))


def _content_part(event: Body) -> pb.ContentPartEvent:
    return pb.ContentPartEvent(part=_part(event["part"]), **_in_part(event))


def _text_delta(event: Body) -> pb.TextDelta:
    return pb.TextDelta(delta=event["delta"], logprobs=_logprobs(event.get("logprobs", ())), **_in_part(event))


def _text_done(event: Body) -> pb.TextDone:
    return pb.TextDone(text=event["text"], logprobs=_logprobs(event.get("logprobs", ())), **_in_part(event))


def _call_delta(event: Body) -> pb.CallDelta:
    return pb.CallDelta(delta=event["delta"], **_in_item(event))


_EVENTS: "Final[dict[str, Callable[[Body], Any]]]" = {
    "created": _response,
    "queued": _response,
    "in_progress": _response,
    "completed": _response,
    "incomplete": _response,
    "failed": _response,
    "output_item_added": _output_item,
    "output_item_done": _output_item,
    "content_part_added": _content_part,
    "content_part_done": _content_part,
    "reasoning_text_delta": _text_delta,
    "reasoning_text_done": _text_done,
    "output_text_delta": _text_delta,
    "output_text_done": _text_done,
    "function_call_arguments_delta": _call_delta,
    "function_call_arguments_done": lambda event: pb.FunctionCallArgumentsDone(
        arguments=event["arguments"], **_in_item(event)
    ),
    "custom_tool_call_input_delta": _call_delta,
    "custom_tool_call_input_done": lambda event: pb.CustomToolCallInputDone(input=event["input"], **_in_item(event)),
}


def page_to_pb(page: Body) -> pb.InputItemList:
    """The list object of input items."""
    return pb.InputItemList(
        data=map(item_to_pb, page["data"]),
        first_id=page["first_id"],
        last_id=page["last_id"],
        has_more=page["has_more"],
    )
