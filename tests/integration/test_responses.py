"""The Responses API as a client of OpenAI's library meets it: HAProxy, two gateways, one store."""

import contextlib
import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.integration.cluster import Cluster, echo_model, running, wait_until
from tests.support.grammars import EDITS, is_edits

from chorus_cluster.client import ChorusClient
from chorus_cluster.errors import InvalidRequest, ResponseNotFound
from chorus_protos.v1 import responses_pb2
from chorus_protos.v1.chat_pb2 import ROLE_USER, TOOL_CHOICE_REQUIRED

pytestmark = pytest.mark.slow

MODEL = "chorus-demo"
QUESTION = "What is 2 + 3?"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("responses"), {"gateway": {"replicas": 2}}) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: Cluster) -> Iterator[openai.OpenAI]:
    # A connection for each request, so that they go to both gateways.
    with openai.OpenAI(
        base_url=f"{cluster.url}/v1", api_key="none", max_retries=0, default_headers={"connection": "close"}
    ) as client:
        yield client


def gateways_asked(cluster: Cluster) -> int:
    return sum(count > 0 for count in cluster.samples("chorus_gateway_requests_total").values())


def test_create_stream_and_go_on(client: openai.OpenAI) -> None:
    first = client.responses.create(model=MODEL, input=QUESTION, temperature=0)
    assert first.status == "completed" and "5" in first.output_text
    assert first.output[0].type == "reasoning"
    kinds = []
    with client.responses.stream(
        model=MODEL, input="And what is Chorus?", previous_response_id=first.id, temperature=0
    ) as stream:
        kinds = [event.type for event in stream]
        second = stream.get_final_response()
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert second.previous_response_id == first.id
    assert second.usage is not None and first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
    items = [item.type for item in client.responses.input_items.list(second.id, order="asc")]
    assert items == ["message", *(item.type for item in first.output), "message"]
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_the_model_is_held_to_what_is_asked(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"sum": {"type": "integer"}},
        "required": ["sum"],
        "additionalProperties": False,
    }
    asked: dict[str, Any] = {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": 300}
    text = {"format": {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}}
    answer = client.responses.create(**asked, text=text)
    assert isinstance(json.loads(answer.output_text)["sum"], int)
    asked["input"] = "What is the weather in Paris?"
    weather = {"type": "custom", "name": "get_weather", "description": "Gets the weather in a city."}
    called = client.responses.create(**asked, tools=[weather], tool_choice="required")  # type: ignore[list-item]
    call = called.output[-1]
    assert call.type == "custom_tool_call" and call.name == "get_weather" and not call.input.startswith("{")


def test_custom_tools_are_held_to_their_grammar(client: openai.OpenAI, cluster: Cluster) -> None:
    # Characters and a name that the demo model can write.
    plain = EDITS.replace("(.+)", "[a-e]{1,4}").replace("(.*)", "[a-e]{0,4}").replace("edit+", "edit")
    form = {"type": "grammar", "syntax": "lark", "definition": plain}
    tools: list[Any] = [{"type": "custom", "name": "get_weather", "format": form}]
    asked: dict[str, Any] = {"model": MODEL, "tools": tools, "tool_choice": "required", "max_output_tokens": 400}
    num_whole = 0
    for seed in range(5):
        called = client.responses.create(**asked, input="What is the weather in Paris?", extra_body={"seed": seed})
        call = called.output[-1]
        if called.status == "completed":
            assert call.type == "custom_tool_call" and is_edits(call.input), call
            num_whole += 1
    assert num_whole > 1
    form["definition"] = "start: nothing"
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**asked, input="What is the weather in Paris?")
    assert refused.value.param == "tools[0].format.definition"
    grammar = responses_pb2.InputGrammar(syntax="regex", definition="(")
    tool = responses_pb2.ResponseTool(custom=responses_pb2.CustomTool(name="get_weather", grammar=grammar))
    part = responses_pb2.ContentPart(input_text=QUESTION)
    item = responses_pb2.ResponseItem(message=responses_pb2.MessageItem(role=ROLE_USER, content=[part]))
    request = responses_pb2.CreateResponseRequest(model=MODEL, input=[item], tools=[tool])
    with ChorusClient(cluster.grpc_address) as chorus:
        with pytest.raises(InvalidRequest) as told:
            chorus.create_response(request, timeout_s=60)
        assert told.value.field == "tools[0].format.definition"
        tool.custom.grammar.definition = "[ab]{3}x"
        held = responses_pb2.CreateResponseRequest(
            model=MODEL,
            input=[item],
            tools=[tool],
            tool_choice=responses_pb2.ResponseToolChoice(mode=TOOL_CHOICE_REQUIRED),
            max_output_tokens=400,
        )
        input = chorus.create_response(held, timeout_s=60).output[-1].custom_tool_call.input
        assert re.fullmatch("[ab]{3}x", input)


def test_in_the_background_across_gateways(client: openai.OpenAI, cluster: Cluster) -> None:
    created = client.responses.create(model=MODEL, input=QUESTION, background=True, temperature=0)
    assert created.status == "queued"
    polled = created
    while polled.status in ("queued", "in_progress"):
        polled = client.responses.retrieve(created.id)
    assert polled.status == "completed" and "5" in polled.output_text

    streamed = list(client.responses.create(model=MODEL, input=QUESTION, background=True, stream=True, temperature=0))
    id = streamed[0].response.id  # type: ignore[union-attr]
    for after in range(0, len(streamed) - 1, 3):
        rest = list(client.responses.retrieve(id, stream=True, starting_after=after))
        assert rest == streamed[after + 1 :]

    stopped = client.responses.create(model=MODEL, input="Count to one hundred.", background=True)
    assert client.responses.cancel(stopped.id).status in ("cancelled", "completed")
    assert gateways_asked(cluster) == 2


def test_over_grpc(client: openai.OpenAI, cluster: Cluster) -> None:
    """With the package's own client: what one protocol keeps, the other goes on from, follows and ends."""
    part = responses_pb2.ContentPart(input_text=QUESTION)
    message = responses_pb2.MessageItem(role=ROLE_USER, content=[part])
    request = responses_pb2.CreateResponseRequest(
        model=MODEL, input=[responses_pb2.ResponseItem(message=message)], temperature=0
    )
    with ChorusClient(cluster.grpc_address) as chorus:
        first = chorus.create_response(request, timeout_s=60)
        assert first.status == responses_pb2.RESPONSE_STATUS_COMPLETED
        answer = first.output[-1].message.content[0].output_text.text
        assert "5" in answer and client.responses.retrieve(first.id).output_text == answer
        second = client.responses.create(model=MODEL, input="Why?", previous_response_id=first.id, temperature=0)
        page = chorus.list_input_items(responses_pb2.ListInputItemsRequest(response_id=second.id))
        assert page.data[-1].message == message and page.data[-2] == first.output[0]
        streamed = list(chorus.stream_response(request, timeout_s=60))
        assert streamed[-1].completed.output[-1].message.content[0].output_text.text == answer
        request.background = True
        kept = list(chorus.stream_response(request, timeout_s=60))
        id = kept[0].created.id
        assert kept[-1].completed == chorus.get_response(id)
        for after in range(0, len(kept), 3):
            assert list(chorus.stream_stored_response(id, starting_after=after)) == kept[after + 1 :]
        numbers = [event.sequence_number for event in client.responses.retrieve(id, stream=True)]
        assert numbers == [event.sequence_number for event in kept]
        assert chorus.cancel_response(id) == kept[-1].completed
        chorus.delete_response(id)
        with pytest.raises(ResponseNotFound):
            list(chorus.stream_stored_response(id))
        with pytest.raises(InvalidRequest) as caught:
            list(chorus.stream_response(responses_pb2.CreateResponseRequest(model=MODEL)))
        assert caught.value.field == "input"


def test_ctrl_c_lets_the_background_finish(tmp_path: Path) -> None:
    file = tmp_path / "store.sqlite3"
    settings = {
        "model": {"path": echo_model(), "name": "test"},
        "workers": {"num_cpus": 0.5},
        "store": {"url": f"sqlite:///{file}"},
    }
    with running(tmp_path, settings) as cluster:
        with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as client:
            id = client.responses.create(model="test", input="Hi", background=True, max_output_tokens=303).id
        wait_until(lambda: cluster.total("chorus_requests_running") == 1, 10, "the engine runs the request")
        cluster.interrupt()
        assert cluster.wait_for_exit() == 0
    with contextlib.closing(sqlite3.connect(file)) as store:
        ((found, status, output),) = store.execute("SELECT id, status, output FROM responses")
    assert (found, status) == (id, "incomplete")
    assert "Hello" * 300 in output


def test_the_store_goes_with_the_cluster(tmp_path: Path) -> None:
    """In a file of one's own it stays."""
    url = f"sqlite:///{tmp_path}/kept/store.sqlite3"
    settings = {"store": {"url": url}}
    with running(tmp_path, settings) as cluster:
        client = openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0)
        kept = client.responses.create(model=MODEL, input=QUESTION, temperature=0)
        client.close()
    with running(tmp_path, settings) as cluster:
        client = openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0)
        assert client.responses.retrieve(kept.id) == kept
        client.close()
