// The official client for JavaScript on a server with the demo model. Its address comes with the environment.

import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";

const client = new OpenAI({ maxRetries: 0 });
const model = "chorus-demo";
const sum = [{ role: "user", content: "What is 17 + 25?" }];
const counting = [{ role: "user", content: "Count from 1 to 60" }];
const weather = {
  type: "function",
  function: {
    name: "get_weather",
    description: "Gets the weather in a city.",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};
// What the tool finds, spelled as the demo model has learned it.
const found = '{"temperature": 22, "condition": "sunny"}';
const ask = { model, messages: sum, temperature: 0 };

async function collect(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

test("models", async () => {
  const models = await collect(await client.models.list());
  assert.deepEqual(models.map((each) => each.id), [model]);
  assert.equal((await client.models.retrieve(model)).id, model);
});

test("a whole answer, with its usage and its request id", async () => {
  const answer = await client.chat.completions.create(ask);
  assert.equal(answer.object, "chat.completion");
  assert.equal(answer.choices[0].message.content, "17 + 25 = 42");
  assert.ok(answer.choices[0].message.reasoning.length > 0);
  assert.equal(answer.choices[0].finish_reason, "stop");
  const { prompt_tokens, completion_tokens, total_tokens, completion_tokens_details } = answer.usage;
  assert.equal(total_tokens, prompt_tokens + completion_tokens);
  assert.ok(completion_tokens_details.reasoning_tokens > 0);
  assert.ok(answer._request_id);
});

test("a stream, with the usage at its end", async () => {
  const chunks = await collect(
    await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } }),
  );
  const last = chunks.pop();
  assert.deepEqual(last.choices, []);
  assert.ok(last.usage.completion_tokens > 0);
  assert.ok(chunks.every((chunk) => chunk.usage === null && chunk.object === "chat.completion.chunk"));
  assert.equal(chunks[0].choices[0].delta.role, "assistant");
  const text = (name) => chunks.map((chunk) => chunk.choices[0].delta[name] ?? "").join("");
  assert.equal(text("content"), "17 + 25 = 42");
  assert.ok(text("reasoning").length > 0);
  assert.equal(chunks.at(-1).choices[0].finish_reason, "stop");
});

test("the stream helper puts the answer together", async () => {
  const events = [];
  const stream = client.chat.completions.stream(ask);
  stream.on("content", (piece) => events.push(piece));
  const completion = await stream.finalChatCompletion();
  assert.equal(completion.choices[0].message.content, "17 + 25 = 42");
  assert.equal(events.join(""), "17 + 25 = 42");
});

test("a tool loop by hand", async () => {
  const messages = [{ role: "user", content: "What's the weather in Paris?" }];
  const first = await client.chat.completions.create({ ...ask, messages, tools: [weather] });
  assert.equal(first.choices[0].finish_reason, "tool_calls");
  const [call] = first.choices[0].message.tool_calls;
  assert.equal(call.function.name, "get_weather");
  assert.deepEqual(JSON.parse(call.function.arguments), { city: "Paris" });
  messages.push(first.choices[0].message, {
    role: "tool",
    tool_call_id: call.id,
    content: found,
  });
  const second = await client.chat.completions.create({ ...ask, messages, tools: [weather] });
  assert.equal(second.choices[0].message.content, "It is 22 degrees and sunny in Paris.");
});

test("a tool loop by the client's own runner, streamed", async () => {
  const asked = [];
  const runner = client.chat.completions.runTools({
    ...ask,
    stream: true,
    messages: [{ role: "user", content: "What's the weather in Paris?" }],
    tools: [
      {
        type: "function",
        function: {
          ...weather.function,
          parse: JSON.parse,
          function: ({ city }) => {
            asked.push(city);
            return found;
          },
        },
      },
    ],
  });
  assert.equal(await runner.finalContent(), "It is 22 degrees and sunny in Paris.");
  assert.deepEqual(asked, ["Paris"]);
});

test("n answers, whole and streamed", async () => {
  const several = { ...ask, n: 3 };
  const answer = await client.chat.completions.create(several);
  assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1, 2]);
  assert.ok(answer.choices.every((choice) => choice.message.content === "17 + 25 = 42"));
  const texts = ["", "", ""];
  for await (const chunk of await client.chat.completions.create({ ...several, stream: true })) {
    for (const choice of chunk.choices) texts[choice.index] += choice.delta.content ?? "";
  }
  assert.deepEqual(texts, Array(3).fill("17 + 25 = 42"));
});

test("log probabilities, whole and streamed", async () => {
  const wanted = { ...ask, logprobs: true, top_logprobs: 2 };
  const answer = await client.chat.completions.create(wanted);
  const entries = answer.choices[0].logprobs.content;
  assert.equal(entries.map((entry) => entry.token).join(""), "17 + 25 = 42");
  assert.ok(entries.every((entry) => entry.logprob <= 0 && entry.top_logprobs.length <= 2 && entry.bytes.length > 0));
  const chunks = await collect(await client.chat.completions.create({ ...wanted, stream: true }));
  const streamed = chunks.flatMap((chunk) => chunk.choices[0].logprobs?.content ?? []);
  assert.deepEqual(streamed.map((entry) => entry.token), entries.map((entry) => entry.token));
});

test("a limit ends an answer early", async () => {
  const answer = await client.chat.completions.create({ ...ask, max_completion_tokens: 3 });
  assert.equal(answer.choices[0].finish_reason, "length");
  assert.equal(answer.usage.completion_tokens, 3);
});

test("raw prompts", async () => {
  const answer = await client.completions.create({ model, prompt: ["2 + 2 =", "3 + 3 ="], max_tokens: 4 });
  assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1]);
  assert.equal(answer.object, "text_completion");
  const chunks = await collect(
    await client.completions.create({ model, prompt: "2 + 2 =", max_tokens: 4, stream: true }),
  );
  assert.equal(chunks.at(-1).choices[0].finish_reason, "length");
});

test("a response, with its reasoning and its usage", async () => {
  const response = await client.responses.create({ model, input: sum, temperature: 0 });
  assert.equal(response.status, "completed");
  assert.equal(response.output_text, "17 + 25 = 42");
  assert.deepEqual(response.output.map((item) => item.type), ["reasoning", "message"]);
  assert.ok(response.output[0].content[0].text.length > 0);
  const { input_tokens, output_tokens, total_tokens, output_tokens_details } = response.usage;
  assert.equal(total_tokens, input_tokens + output_tokens);
  assert.ok(output_tokens_details.reasoning_tokens > 0);
  assert.ok(response._request_id);
});

test("a response as a stream of numbered events", async () => {
  const events = await collect(await client.responses.create({ model, input: sum, temperature: 0, stream: true }));
  assert.deepEqual(events.map((event) => event.sequence_number), [...events.keys()]);
  assert.equal(events[0].type, "response.created");
  const text = (type) => events.filter((event) => event.type === type).map((event) => event.delta).join("");
  assert.equal(text("response.output_text.delta"), "17 + 25 = 42");
  const last = events.at(-1);
  assert.equal(last.type, "response.completed");
  assert.equal(text("response.reasoning_text.delta"), last.response.output[0].content[0].text);
});

test("the stream helper puts a response together", async () => {
  const pieces = [];
  const stream = client.responses.stream({ model, input: sum, temperature: 0 });
  stream.on("response.output_text.delta", (event) => pieces.push(event.delta));
  const response = await stream.finalResponse();
  assert.equal(response.output_text, "17 + 25 = 42");
  assert.equal(pieces.join(""), response.output_text);
});

test("a tool loop that the server keeps", async () => {
  const tools = [{ type: "function", ...weather.function, strict: false }];
  const input = "What's the weather in Paris?";
  const first = await client.responses.create({ model, input, tools, temperature: 0 });
  const call = first.output.at(-1);
  assert.deepEqual([call.type, call.name, JSON.parse(call.arguments)], [
    "function_call",
    "get_weather",
    { city: "Paris" },
  ]);
  const second = await client.responses.create({
    model,
    input: [{ type: "function_call_output", call_id: call.call_id, output: found }],
    previous_response_id: first.id,
    tools,
    temperature: 0,
  });
  assert.equal(second.output_text, "It is 22 degrees and sunny in Paris.");
  assert.deepEqual(await client.responses.retrieve(second.id).then(({ output }) => output), second.output);
  const items = await collect(await client.responses.inputItems.list(second.id, { order: "asc", limit: 2 }));
  assert.deepEqual(items.map((item) => item.type), [
    "message",
    ...first.output.map((item) => item.type),
    "function_call_output",
  ]);
  await client.responses.delete(first.id);
  await assert.rejects(client.responses.retrieve(first.id), OpenAI.NotFoundError);
});

test("a response in the background, whose stream is taken up again", async () => {
  const asked = { model, input: sum, temperature: 0, background: true };
  const events = await collect(await client.responses.create({ ...asked, stream: true }));
  const { id } = events[0].response;
  const rest = await collect(await client.responses.retrieve(id, { stream: true, starting_after: 3 }));
  assert.deepEqual(rest, events.slice(4));
  let polled = await client.responses.create(asked);
  assert.equal(polled.status, "queued");
  while (["queued", "in_progress"].includes(polled.status)) polled = await client.responses.retrieve(polled.id);
  assert.equal(polled.output_text, "17 + 25 = 42");
});

test("errors have the client's types", async () => {
  await assert.rejects(client.chat.completions.create({ ...ask, model: "gpt-9" }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.deepEqual([error.status, error.code, error.type], [404, "model_not_found", "invalid_request_error"]);
    assert.ok(error.requestID);
    return true;
  });
  for (const stream of [false, true]) {
    await assert.rejects(client.chat.completions.create({ ...ask, temperature: 3, stream }), (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError);
      assert.deepEqual([error.code, error.param], ["invalid_value", "temperature"]);
      return true;
    });
  }
  await assert.rejects(client.get("/nowhere"), OpenAI.NotFoundError);
  await assert.rejects(
    client.chat.completions.create({ ...ask, messages: counting }, { headers: { "x-request-timeout-s": "0.001" } }),
    (error) => error instanceof OpenAI.InternalServerError && error.status === 504,
  );
});

test("an aborted stream ends", async () => {
  const stream = await client.chat.completions.create({ model, messages: counting, stream: true, ...endless() });
  let pieces = 0;
  for await (const _ of stream) {
    if (++pieces === 3) stream.controller.abort();
  }
  assert.ok(pieces < 10);
});

test("an aborted request ends", async () => {
  const abort = new AbortController();
  const asked = client.chat.completions.create({ model, messages: counting, ...endless() }, { signal: abort.signal });
  setTimeout(() => abort.abort(), 150);
  await assert.rejects(asked, OpenAI.APIUserAbortError);
});

// Answers that go on until the context is full: their end token is out of reach.
function endless() {
  return { logit_bias: { 200002: -100, 200007: -100, 200012: -100 }, temperature: 1 };
}
