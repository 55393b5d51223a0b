// The official anthropic client for Node: its tool runner and its message stream, two turns with a call each.
import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0, timeout: 120_000 });
const questions = ["How warm is it there?", "And tomorrow?"];
const result = "sunny, 24 degrees";
const schema = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const base = { model: "default", max_tokens: 500 };

const cities = [];
const weather = {
  type: "custom",
  name: "weather",
  input_schema: schema,
  parse: (input) => input,
  run: ({ city }) => {
    cities.push(city);
    return result;
  },
};
let messages = [];
for (const content of questions) {
  messages.push({ role: "user", content });
  const runner = client.beta.messages.toolRunner({ ...base, messages, tools: [weather] });
  const last = await runner.runUntilDone();
  assert.equal(last.content[0].text, "All is done.");
  messages = [...runner.params.messages];
  if (messages.at(-1).role !== "assistant") messages.push({ role: "assistant", content: last.content });
}
assert.deepEqual(cities, ["Lisbon", "Lisbon"]);

const history = [];
const tools = [{ name: "weather", input_schema: schema }];
for (const content of questions) {
  history.push({ role: "user", content });
  for (;;) {
    const pieces = [];
    const stream = client.messages.stream({ ...base, messages: history, tools });
    stream.on("text", (text) => pieces.push(text)).on("inputJson", (text) => pieces.push(text));
    const message = await stream.finalMessage();
    history.push({ role: "assistant", content: message.content });
    assert.ok(pieces.length);
    if (message.stop_reason !== "tool_use") {
      assert.equal(pieces.join(""), "All is done.");
      break;
    }
    const [call] = message.content;
    assert.deepEqual(call.input, { city: "Lisbon" });
    history.push({ role: "user", content: [{ type: "tool_result", tool_use_id: call.id, content: result }] });
  }
}
console.log("done");
