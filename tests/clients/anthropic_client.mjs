// Anthropic's client for JavaScript through Tollgate: whole messages, streams, counting, hanging up, and the right errors.
import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";
import { breaks, counting, given, hello, model, otherModel, refused, say, tell } from "./expect.mjs";

// The key travels as X-API-Key.
const client = (key, options = {}) =>
  new Anthropic({ baseURL: given.url, apiKey: given.keys[key], fetch: counting, ...options });
const us = client("mine");
// Anthropic counts what was cached, or is now, apart from the input.
const prompt = (usage) =>
  usage.input_tokens + (usage.cache_read_input_tokens ?? 0) + (usage.cache_creation_input_tokens ?? 0);

async function messages() {
  const answer = await us.messages.create({ model, max_tokens: 7, system: "be kind", messages: hello() });
  assert.deepEqual([answer.stop_reason, answer.usage.output_tokens], ["max_tokens", 7]);
  assert.ok(answer.content[0].text);
  tell(model, prompt(answer.usage), answer.usage.output_tokens);
  const stream = us.messages.stream({ model: otherModel, max_tokens: 7, messages: hello() });
  let text = "";
  stream.on("text", (piece) => (text += piece));
  const whole = await stream.finalMessage();
  assert.equal(whole.content[0].text, text);
  assert.equal(whole.usage.output_tokens, 7);
  tell(otherModel, prompt(whole.usage), whole.usage.output_tokens);
  const counted = await client("hasty").messages.countTokens({ model, messages: hello() });
  const short = await us.messages.create({ model, max_tokens: 1, messages: hello() });
  assert.equal(prompt(short.usage), counted.input_tokens);
  tell(model, prompt(short.usage), short.usage.output_tokens);
}

async function errors() {
  const message = (key, of = model, fields = {}, options = {}) =>
    client(key, options).messages.create({ model: of, messages: hello(), max_tokens: 5, ...fields });
  await refused(Anthropic.AuthenticationError, 401, 1, () => message("wrong"));
  await refused(Anthropic.NotFoundError, 404, 1, () => message("mine", "no-such-model"));
  await refused(Anthropic.PermissionDeniedError, 403, 1, () => message("narrow", otherModel));
  await refused(Anthropic.BadRequestError, 400, 1, () => message("hasty", model, { temperature: -1 }));
  await refused(Anthropic.RateLimitError, 429, 1, () => message("spent"));
  await message("slow");
  await refused(Anthropic.RateLimitError, 429, 1, () => message("slow", model, {}, { maxRetries: 0 }));
  const full = { messages: hello("[[fault:overload]]") };
  await refused(Anthropic.ServiceUnavailableError, 503, 2, () => message("hasty", model, full, { maxRetries: 1 }));
  const broken = { messages: hello("[[fault:error_mid_stream:5]]"), stream: true };
  await breaks(Anthropic.APIError, await message("hasty", model, broken));
}

async function hangUp() {
  const stream = await client("hasty").messages.create({ model, messages: hello(), stream: true, max_tokens: 5000 });
  let events = 0;
  for await (const _ of stream) {
    events += 1;
    if (events === 5) stream.controller.abort();
  }
  return 1;
}

for (const check of [messages, errors]) await check();
say(await hangUp());
