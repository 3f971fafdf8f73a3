// What the scripts for JavaScript share: what they were given, and how they say what they saw.
import assert from "node:assert/strict";

export const given = JSON.parse(process.env.TOLLGATE_TEST);
export const [model, otherModel, embedder] = given.models;
export const hello = (words = "hello") => [{ role: "user", content: words }];

let sent = 0;
// Counts the requests that a client really sends.
export const counting = (...request) => {
  sent += 1;
  return fetch(...request);
};

// The call is refused with exactly this class and status, after so many requests.
export async function refused(kind, status, times, call, code) {
  const before = sent;
  const error = await call().then(
    () => assert.fail(`no ${kind.name}`),
    (error) => error,
  );
  assert.equal(error.constructor.name, kind.name, `${error}`);
  assert.equal(error.status, status);
  assert.equal(sent - before, times, `requests sent until ${kind.name} ${status}`);
  assert.ok(error.requestID, "an id to ask about");
  if (code) assert.equal(error.code, code);
}

// The stream breaks, after it has begun, with one of the client's own errors.
export async function breaks(kind, stream) {
  let events = 0;
  try {
    for await (const _ of stream) events += 1;
  } catch (error) {
    assert.ok(error instanceof kind && events > 0, `${error}`);
    return;
  }
  assert.fail("a stream that broke ended as if it were whole");
}

// Usage as the answers told it, to be held against the bill.
const told = {};
export function tell(model, prompt, completion) {
  told[model] ??= { requests: 0, prompt: 0, completion: 0 };
  told[model].requests += 1;
  told[model].prompt += prompt;
  told[model].completion += completion;
}
export const say = (hungUp) => console.log(JSON.stringify({ told, hung_up: hungUp }));
