// OpenAI's client for JavaScript through Tollgate: whole answers, streams, hanging up, and the right errors.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { breaks, counting, embedder, given, hello, model, otherModel, refused, say, tell } from "./expect.mjs";

const client = (key, options = {}) =>
  new OpenAI({ baseURL: `${given.url}/v1`, apiKey: given.keys[key], fetch: counting, ...options });
const us = client("mine");
const told = (model, usage) => tell(model, usage.prompt_tokens, usage.completion_tokens ?? 0);

async function chats() {
  const answer = await us.chat.completions.create({ model, messages: hello(), max_tokens: 7 });
  assert.equal(answer.usage.completion_tokens, 7);
  assert.ok(answer.choices[0].message.content && answer._request_id);
  told(model, answer.usage);
  const stream = await us.chat.completions.create({
    model: otherModel, messages: hello(), max_tokens: 7, stream: true, stream_options: { include_usage: true },
  });
  let [text, usage] = ["", null];
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.ok(text);
  assert.equal(usage.completion_tokens, 7);
  told(otherModel, usage);
  const helped = us.chat.completions.stream({
    model, messages: hello(), max_tokens: 5, stream_options: { include_usage: true },
  });
  const whole = await helped.finalChatCompletion();
  assert.ok(whole.choices[0].message.content);
  told(model, whole.usage);
}

async function others() {
  const completion = await us.completions.create({ model, prompt: ["one", "another"], max_tokens: 5 });
  assert.deepEqual([completion.choices.length, completion.usage.completion_tokens], [2, 10]);
  told(model, completion.usage);
  const coded = await us.embeddings.create({ model: embedder, input: ["hello world", "morning"], dimensions: 32 });
  const plain = await us.embeddings.create({
    model: embedder, input: "hello world", dimensions: 32, encoding_format: "float",
  });
  assert.deepEqual(coded.data.map((item) => item.embedding.length), [32, 32]);
  coded.data[0].embedding.forEach((value, at) => assert.ok(Math.abs(value - plain.data[0].embedding[at]) < 1e-6));
  for (const answer of [coded, plain]) told(embedder, answer.usage);
  const names = [];
  for await (const one of us.models.list()) names.push(one.id);
  assert.ok([model, otherModel, embedder].every((name) => names.includes(name)), `${names}`);
  assert.equal((await us.models.retrieve(model)).id, model);
}

async function responses() {
  const answer = await us.responses.create({ model, input: "hello", max_output_tokens: 7 });
  assert.deepEqual([answer.status, answer.usage.output_tokens], ["incomplete", 7]);
  assert.ok(answer.output_text);
  tell(model, answer.usage.input_tokens, answer.usage.output_tokens);
  const kinds = [];
  let last;
  for await (const event of await us.responses.create({ model, input: "hello", max_output_tokens: 7, stream: true })) {
    kinds.push(event.type);
    last = event;
  }
  assert.deepEqual([kinds[0], kinds.at(-1)], ["response.created", "response.completed"]);
  tell(model, last.response.usage.input_tokens, last.response.usage.output_tokens);
}

async function errors() {
  const chat = (key, of = model, fields = {}, options = {}) =>
    client(key, options).chat.completions.create({ model: of, messages: hello(), max_tokens: 5, ...fields });
  await refused(OpenAI.AuthenticationError, 401, 1, () => chat("wrong"), "invalid_api_key");
  await refused(OpenAI.NotFoundError, 404, 1, () => chat("mine", "no-such-model"), "model_not_found");
  await refused(OpenAI.PermissionDeniedError, 403, 1, () => chat("narrow", otherModel), "model_not_allowed");
  await refused(OpenAI.BadRequestError, 400, 1, () => chat("hasty", model, { temperature: -1 }));
  await refused(OpenAI.RateLimitError, 429, 1, () => chat("spent"), "insufficient_quota");
  await chat("slow");
  await refused(OpenAI.RateLimitError, 429, 1, () => chat("slow", model, {}, { maxRetries: 0 }), "rate_limit_exceeded");
  const full = { messages: hello("[[fault:overload]]") };
  await refused(OpenAI.InternalServerError, 503, 2, () => chat("hasty", model, full, { maxRetries: 1 }));
  const broken = { messages: hello("[[fault:error_mid_stream:4]]"), stream: true };
  await breaks(OpenAI.APIError, await chat("hasty", model, broken));
}

async function hangUp() {
  const stream = await client("hasty").chat.completions.create({
    model, messages: hello(), stream: true, max_tokens: 5000,
  });
  let events = 0;
  for await (const _ of stream) {
    events += 1;
    if (events === 5) stream.controller.abort();
  }
  for await (const _ of await client("hasty").completions.create({
    model, prompt: "hello", stream: true, max_tokens: 5000,
  })) {
    break;
  }
  return 2;
}

for (const check of [chats, others, responses, errors]) await check();
say(await hangUp());
