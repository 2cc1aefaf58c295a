"""/v1/responses: the items of its input, and their parts."""

from openai.types.responses import ResponseInputContentParam, ResponseOutputRefusalParam, ResponseOutputTextParam
from openai.types.responses.response_input_item_param import ResponseInputItemParam
from tests.conformance.responses_door import DOOR, PATCH, keeper, output, prompt
from tests.conformance.rows import Body, Row, types_of

QUESTION: Body = {"role": "user", "content": "Hi"}
CALL: Body = {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": '{"city":1}'}
RESULT: Body = {"type": "function_call_output", "call_id": "c1", "output": "22 C"}
CUSTOM_CALL: Body = {"type": "custom_tool_call", "call_id": "c2", "name": "apply_patch", "input": "*** Begin"}
CUSTOM_RESULT: Body = {"type": "custom_tool_call_output", "call_id": "c2", "output": "Done!"}


async def text() -> bool:
    return "<|start|>user<|message|>Hi<|end|>" in await prompt()


async def messages() -> bool:
    texts = {"system": "sss", "developer": "ddd", "user": "uuu", "assistant": "aaa"}
    items = [{"type": "message", "role": role, "content": each} for role, each in texts.items()]
    shown = await prompt(input=items)
    # Its type may be left out.
    return all(each in shown for each in texts.values()) and "Hi" in await prompt(input=[QUESTION])


async def input_text() -> bool:
    content = [{"type": "input_text", "text": "one "}, {"type": "input_text", "text": "two"}]
    return "<|message|>one two<|end|>" in await prompt(input=[{"role": "user", "content": content}])


async def said_before() -> bool:
    content: list[Body] = [
        {"type": "output_text", "text": "Yes. ", "annotations": []},
        {"type": "refusal", "refusal": "No."},
    ]
    shown = await prompt(input=[{"type": "message", "role": "assistant", "content": content}])
    return "<|channel|>final<|message|>Yes. No.<|end|>" in shown


async def phases() -> bool:
    said = {"role": "assistant", "phase": "commentary", "content": "I look it up."}
    answered = {"role": "assistant", "phase": "final_answer", "content": "22 C"}
    shown = await prompt(input=[QUESTION, said, answered, QUESTION])
    return "<|channel|>commentary<|message|>I look" in shown and "<|channel|>final<|message|>22 C" in shown


async def reasoning() -> bool:
    item = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Let me see."}]}
    before_call = await prompt(input=[QUESTION, item, CALL, RESULT])
    before_answer = await prompt(input=[QUESTION, item, {"role": "assistant", "content": "Hello."}, QUESTION])
    return "Let me see." in before_call and "Let me see." not in before_answer


async def encrypted_reasoning() -> bool:
    made = (await output(include=["reasoning.encrypted_content"]))[0]
    item = {"type": "reasoning", "summary": [], "encrypted_content": made["encrypted_content"]}
    return "The user greets." in await prompt(input=[QUESTION, item, CALL, RESULT])


async def calls() -> bool:
    shown = await prompt(input=[QUESTION, CALL, RESULT])
    return all(each in shown for each in ("to=functions.get_weather", '{"city":1}', "22 C"))


async def custom_calls() -> bool:
    shown = await prompt(input=[QUESTION, CUSTOM_CALL, CUSTOM_RESULT])
    form = {"type": "grammar", "syntax": "regex", "definition": "x+"}
    as_text = await prompt(input=[QUESTION, CUSTOM_CALL, CUSTOM_RESULT], tools=[PATCH | {"format": form}])
    return (
        all(each in shown for each in ("to=functions.apply_patch", '{"input": "*** Begin"}', "Done!"))
        and "to=functions.apply_patch<|channel|>commentary code<|message|>*** Begin<|call|>" in as_text
    )


async def item_references() -> bool:
    async with keeper() as kept:
        first = await kept.create()
        reference = {"type": "item_reference", "id": first["output"][-1]["id"]}
        await kept.create(input=[QUESTION, reference, {"role": "user", "content": "And now?"}])
        return "<|channel|>final<|message|>Hello there, friend." in kept.prompt()


def _refused(note: str, *types: str) -> list[Row]:
    return [DOOR.refused("input", [{"type": type}], note, f"`{type}`", "input[0].type") for type in types]


def _part(type: str) -> Row:
    content: list[Body] = [{"type": type}]
    item: Body = {"role": "user", "content": content}
    return DOOR.refused("input", [item], "gpt-oss reads text alone", f"`{type}`", "input[0].content[0].type")


S = DOOR.supported
RUNS_NOWHERE = "no such tool runs here"
ITEM_ROWS = [
    S("input", text, values="a string"),
    S("input", messages, "of the roles system, developer, user, assistant", "`message`"),
    S("input", input_text, values="`input_text`"),
    S("input", said_before, "of an assistant's message", "`output_text`, `refusal`"),
    S("input", phases, "on the channel of its `phase`", "messages with a phase"),
    _part("input_image"),
    _part("input_file"),
    S("input", reasoning, "in the clear; read up to the next answer", "`reasoning`"),
    S("input", encrypted_reasoning, "its `encrypted_content`, where it was made here", "`reasoning`"),
    S("input", calls, values="`function_call`, `function_call_output`"),
    S("input", custom_calls, values="`custom_tool_call`, `custom_tool_call_output`"),
    S("input", item_references, "to items of stored outputs", "`item_reference`"),
    *_refused(RUNS_NOWHERE, "file_search_call", "computer_call", "computer_call_output", "web_search_call"),
    *_refused(RUNS_NOWHERE, "image_generation_call", "code_interpreter_call", "tool_search_call", "tool_search_output"),
    *_refused(RUNS_NOWHERE, "local_shell_call", "local_shell_call_output", "shell_call", "shell_call_output"),
    *_refused(RUNS_NOWHERE, "apply_patch_call", "apply_patch_call_output", "program", "program_output"),
    *_refused(RUNS_NOWHERE, "mcp_list_tools", "mcp_approval_request", "mcp_approval_response", "mcp_call"),
    *_refused("`tools` declares them", "additional_tools"),
    *_refused("the request says it", "configuration_update"),
    *_refused("`truncation` shortens what is too long", "compaction", "compaction_trigger"),
]


EXPECTED_VALUES = (
    types_of(ResponseInputItemParam)
    | types_of(ResponseInputContentParam)
    | types_of(ResponseOutputTextParam | ResponseOutputRefusalParam)
)
