// A session of the official openai client for Node: every route, streaming, tools, structure, errors, cancelling.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0, timeout: 120_000 });
const messages = [{ role: "user", content: "Say hello." }];
const schema = {
  type: "object",
  properties: { city: { type: "string", maxLength: 12 } },
  required: ["city"],
  additionalProperties: false,
};
const base = { model: "default", temperature: 0 };

const names = [];
for await (const model of client.models.list()) names.push(model.id);
assert.ok(names.includes("thinker"));

const whole = await client.chat.completions.create({ ...base, messages, max_tokens: 6 });
assert.equal(whole.usage.completion_tokens, 6);

let text = "";
for await (const chunk of await client.chat.completions.create({ ...base, messages, max_tokens: 6, stream: true })) {
  text += chunk.choices[0]?.delta?.content ?? "";
}
assert.equal(text, whole.choices[0].message.content);

const tools = [{ type: "function", function: { name: "weather", parameters: schema, strict: true } }];
const runner = client.chat.completions.stream({ ...base, messages, tools, tool_choice: "required", max_tokens: 200 });
const called = (await runner.finalChatCompletion()).choices[0];
assert.equal(called.finish_reason, "tool_calls");
assert.equal(typeof JSON.parse(called.message.tool_calls[0].function.arguments).city, "string");

const format = { type: "json_schema", json_schema: { name: "w", schema, strict: true } };
const held = await client.chat.completions.create({ ...base, messages, max_tokens: 100, response_format: format });
assert.deepEqual(Object.keys(JSON.parse(held.choices[0].message.content)), ["city"]);

const thought = await client.chat.completions.create({
  model: "thinker", messages, max_tokens: 40, seed: 1, reasoning_budget: 5,
});
assert.ok(!(thought.choices[0].message.content ?? "").includes("think>"));

const completion = await client.completions.create({ ...base, prompt: "One, two,", max_tokens: 3 });
assert.ok(completion.choices[0].text);

const first = await client.responses.create({ ...base, input: "Say hello.", max_output_tokens: 8 });
assert.ok(first.output_text);
const events = [];
const more = { ...base, input: "Again.", previous_response_id: first.id, max_output_tokens: 8, stream: true };
for await (const event of await client.responses.create(more)) events.push(event.type);
assert.equal(events[0], "response.created");
assert.ok(["response.completed", "response.incomplete"].includes(events.at(-1)));

await assert.rejects(client.chat.completions.create({ ...base, model: "gpt-9", messages }), OpenAI.NotFoundError);
await assert.rejects(client.chat.completions.create({ ...base, messages, colour: 1 }), OpenAI.BadRequestError);

const stream = await client.chat.completions.create({ ...base, messages, max_tokens: 1500, stream: true });
for await (const chunk of stream) {
  if (chunk.choices[0].delta.content) break;
}
stream.controller.abort();
for (let tries = 0; ; tries++) {
  const { engines } = await client.get("/engine");
  if (!engines.some((engine) => engine.requests.length)) break;
  assert.ok(tries < 200, "the request goes on after its client has gone");
  await new Promise((done) => setTimeout(done, 25));
}
console.log("done");
