"""/tokenize and /detokenize: their parameters, which are vLLM's."""

from typing import Any

from tests.conformance.rows import Api, Door

from chorus_cluster.gateway.http.tokens import DetokenizeBody, TokenizeChat, TokenizePrompt

PROMPT = Door("/tokenize", {"prompt": "Hi<|end|>"})
CONVERSATION = Door("/tokenize", {"messages": [{"role": "user", "content": "Hi"}]})
IDS = Door("/detokenize", {"tokens": [12194, 200007]})


async def count(door: Door, **fields: Any) -> int:
    found: int = (await door.served(fields)).body["count"]
    return found


async def model() -> bool:
    return [(await PROMPT.ask({"model": name})).status for name in (None, "fake-model", "gpt-9")] == [200, 200, 404]


async def prompt() -> bool:
    return await count(PROMPT) == 2


async def messages() -> bool:
    tools = [{"type": "function", "function": {"name": "f"}}]
    return 10 < await count(CONVERSATION) < await count(CONVERSATION, tools=tools)


async def return_token_strs() -> bool:
    return (await PROMPT.served({"return_token_strs": True})).body["token_strs"] == ["Hi", "<|end|>"]


async def generation_prompt() -> bool:
    return await count(CONVERSATION, add_generation_prompt=True) == await count(CONVERSATION)


async def detokenize_model() -> bool:
    return [(await IDS.ask({"model": name})).status for name in (None, "fake-model", "gpt-9")] == [200, 200, 404]


async def tokens() -> bool:
    return (await IDS.served({})).body == {"prompt": "Hi<|end|>"}


TOKENIZE = Api(
    PROMPT.path,
    [
        PROMPT.supported("model", model, "may be left out"),
        PROMPT.supported("prompt", prompt),
        CONVERSATION.supported("messages", messages, "with all fields of a chat completion beside them"),
        PROMPT.supported("return_token_strs", return_token_strs),
        CONVERSATION.supported("add_generation_prompt", generation_prompt, values="true"),
        CONVERSATION.refused("add_generation_prompt", False, "the model is always asked to go on", "false"),
        PROMPT.ignored("add_special_tokens", True, False, note="gpt-oss has none to add"),
    ],
    frozenset(TokenizePrompt.model_fields) | frozenset(TokenizeChat.model_fields) | {"messages"},
)
DETOKENIZE = Api(
    IDS.path,
    [
        IDS.supported("model", detokenize_model, "may be left out"),
        IDS.supported("tokens", tokens),
    ],
    frozenset(DetokenizeBody.model_fields),
)
