// The official openai client for Node: its response stream and its parsed completions, two turns with a call each.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodFunction } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0, timeout: 120_000 });
const questions = ["How warm is it there?", "And tomorrow?"];
const result = "sunny, 24 degrees";
const schema = { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false };

let earlier;
const tools = [{ type: "function", name: "weather", parameters: schema, strict: true }];
for (const content of questions) {
  let input = [{ role: "user", content }];
  let response;
  while (input.length) {
    const stream = client.responses.stream({ model: "default", input, tools, previous_response_id: earlier });
    const kinds = [];
    for await (const event of stream) kinds.push(event.type);
    response = await stream.finalResponse();
    assert.equal(kinds.at(-1), "response.completed");
    earlier = response.id;
    const calls = response.output.filter((item) => item.type === "function_call");
    for (const call of calls) assert.deepEqual(JSON.parse(call.arguments), { city: "Lisbon" });
    input = calls.map((call) => ({ type: "function_call_output", call_id: call.call_id, output: result }));
  }
  assert.equal(response.output_text, "All is done.");
}

const messages = [];
const weather = zodFunction({ name: "weather", parameters: z.object({ city: z.string() }) });
for (const content of questions) {
  messages.push({ role: "user", content });
  for (const reason of ["tool_calls", "stop"]) {
    const answer = await client.chat.completions.parse({ model: "default", messages, tools: [weather] });
    const [choice] = answer.choices;
    assert.equal(choice.finish_reason, reason);
    messages.push(choice.message);
    for (const call of choice.message.tool_calls ?? []) {
      assert.deepEqual(call.function.parsed_arguments, { city: "Lisbon" });
      messages.push({ role: "tool", tool_call_id: call.id, content: result });
    }
  }
  assert.equal(messages.at(-1).content, "All is done.");
}
console.log("done");
