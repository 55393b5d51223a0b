// The AI SDK with its default openai provider (responses, kept by the server, referred to by item): two turns with a
// call each, whole and streamed.
import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const bodies = [];
const provider = createOpenAI({
  baseURL: `${process.argv[2]}/v1`,
  apiKey: "none",
  fetch: (url, options) => {
    bodies.push(JSON.parse(options.body));
    return fetch(url, options);
  },
});
const cities = [];
const weather = tool({
  description: "The weather in a city",
  inputSchema: z.object({ city: z.string() }),
  execute: ({ city }) => {
    cities.push(city);
    return "sunny, 24 degrees";
  },
});
const base = { model: provider("default"), tools: { weather }, stopWhen: stepCountIs(3), maxRetries: 0 };

for (const ask of [generateText, streamText]) {
  const messages = [];
  for (const content of ["How warm is it there?", "And tomorrow?"]) {
    messages.push({ role: "user", content });
    const answer = await ask({ ...base, messages });
    assert.equal(await answer.text, "All is done.");
    const rows = (await answer.steps).map((step) => step.response.messages);
    // Before version 7, a step's messages hold those of the steps before it.
    messages.push(...(rows.at(-1).length === 3 ? rows.at(-1) : rows.flat()));
  }
}
assert.equal(cities.length, 4);
const references = bodies.flatMap((body) => body.input).filter((item) => item.type === "item_reference");
assert.ok(references.length >= 4, "items of kept responses are named by their ids");
console.log("done");
