"""OpenAI's Agents SDK against `chorus serve`, over both of its APIs. Its traces, which would go to OpenAI, are off."""

import json
from collections.abc import AsyncIterator
from typing import Any

import agents
import openai
import pytest
from openai.types.responses import ResponseTextDeltaEvent
from pydantic import BaseModel
from tests.integration.cluster import Cluster

pytestmark = pytest.mark.slow

QUESTION = "What's the weather in Paris?"
ANSWER = "It is 22 degrees and sunny in Paris."


@pytest.fixture(params=[agents.OpenAIChatCompletionsModel, agents.OpenAIResponsesModel])
async def model(demo_cluster: Cluster, request: pytest.FixtureRequest) -> AsyncIterator[agents.Model]:
    agents.set_tracing_disabled(True)
    async with openai.AsyncOpenAI(base_url=f"{demo_cluster.url}/v1", api_key="none", max_retries=0) as client:
        yield request.param("chorus-demo", client)


@pytest.fixture
async def responses_model(demo_cluster: Cluster) -> AsyncIterator[agents.OpenAIResponsesModel]:
    agents.set_tracing_disabled(True)
    async with openai.AsyncOpenAI(base_url=f"{demo_cluster.url}/v1", api_key="none", max_retries=0) as client:
        yield agents.OpenAIResponsesModel("chorus-demo", client)


class Sum(BaseModel):
    sum: int


class Weather:
    """A tool, and what it was asked for."""

    def __init__(self) -> None:
        self.cities: list[str] = []
        self.tool = agents.function_tool(self.get_weather)

    def get_weather(self, city: str) -> str:
        """Gets the weather in a city."""
        self.cities.append(city)
        return json.dumps({"temperature": 22, "condition": "sunny"})


def agent(model: agents.Model, *tools: agents.Tool, **fields: Any) -> agents.Agent[None]:
    settings = agents.ModelSettings(temperature=0, include_usage=True)
    return agents.Agent(name="Guide", model=model, model_settings=settings, tools=list(tools), **fields)


async def test_an_agent_calls_its_tool_and_answers(model: agents.Model) -> None:
    weather = Weather()
    result = await agents.Runner.run(agent(model, weather.tool), QUESTION)
    assert result.final_output == ANSWER
    assert weather.cities == ["Paris"]
    assert [item.type for item in result.new_items if item.type != "reasoning_item"] == [
        "tool_call_item",
        "tool_call_output_item",
        "message_output_item",
    ]
    usage = result.context_wrapper.usage
    assert usage.requests == 2
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens > 0


async def test_so_it_does_in_a_stream(model: agents.Model) -> None:
    weather = Weather()
    running = agents.Runner.run_streamed(agent(model, weather.tool), QUESTION)
    text = ""
    async for event in running.stream_events():
        if event.type == "raw_response_event" and isinstance(event.data, ResponseTextDeltaEvent):
            text += event.data.delta
    assert (text, running.final_output, weather.cities) == (ANSWER, ANSWER, ["Paris"])
    assert running.context_wrapper.usage.requests == 2


async def test_a_conversation_goes_on(model: agents.Model) -> None:
    first = await agents.Runner.run(agent(model), "What is 17 + 25?")
    assert first.final_output == "17 + 25 = 42"
    second = await agents.Runner.run(
        agent(model), [*first.to_input_list(), {"role": "user", "content": "What is 2 + 3?"}]
    )
    assert second.final_output == "2 + 3 = 5"


async def test_a_refusal_is_the_clients_error(model: agents.Model) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await agents.Runner.run(
            agents.Agent(name="Hot", model=model, model_settings=agents.ModelSettings(temperature=3)), QUESTION
        )
    assert caught.value.param == "temperature"


async def test_the_server_keeps_the_conversation(responses_model: agents.OpenAIResponsesModel) -> None:
    """Each turn sends what is new, the tool's result too, and goes on from the response before."""
    weather = Weather()
    result = await agents.Runner.run(agent(responses_model, weather.tool), QUESTION, auto_previous_response_id=True)
    assert (result.final_output, weather.cities) == (ANSWER, ["Paris"])
    first, second = result.raw_responses
    assert first.response_id and second.response_id and first.response_id != second.response_id
    later = await agents.Runner.run(agent(responses_model), "What is 2 + 3?", previous_response_id=second.response_id)
    assert later.final_output == "2 + 3 = 5"
    # The model was given what was said before, though it was not sent again.
    alone = await agents.Runner.run(agent(responses_model), "What is 2 + 3?")
    assert later.raw_responses[0].usage.input_tokens > alone.raw_responses[0].usage.input_tokens


async def test_an_output_type_holds_the_model(responses_model: agents.OpenAIResponsesModel) -> None:
    result = await agents.Runner.run(agent(responses_model, output_type=Sum), "What is 2 + 3?")
    assert isinstance(result.final_output, Sum)
