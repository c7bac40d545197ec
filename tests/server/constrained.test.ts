// Requests that hold a reply to a form, answered by a random model: whatever it prefers, the answers have that form.

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { complete, type Piece } from "../../src/engine/completion.ts";
import { Grammars } from "../../src/engine/constraint.ts";
import { Engine } from "../../src/engine/engine.ts";
import { type ContentPart, type Message, metaFormat, type PlainPart, type Tool } from "../../src/prompt/chat-format.ts";
import { byteLevel } from "../../src/prompt/small-vocabularies.ts";
import type { ReplyOptions, ServedModel } from "../../src/server/generation.ts";
import { createHandler, type Handler } from "../../src/server/handler.ts";
import { backend, randomParameters, config as small } from "../engine/random-model.ts";
import { eventsOf, json, post, user } from "./scripted.ts";

const tokenizer = byteLevel({ vocabSize: 320 });
const config = { ...small, vocabSize: 320, contextLength: 4096 };
const stop = tokenizer.stop;

class RandomModel implements ServedModel {
  readonly info = { context: 4096, parameters: { total: 1, active: 1 } };
  readonly engine = new Engine({ backend, parameters: randomParameters(config, 3), config, context: 4096 });
  readonly #grammars = new Grammars(tokenizer, stop);

  async *chat(
    messages: readonly Message<ContentPart>[],
    options: ReplyOptions & { tools?: readonly Tool[] | undefined } = {},
  ): AsyncIterable<Piece> {
    const { maxTokens, stop: strings, constraint, signal, media: _, routes, tools, ...sampling } = options;
    const { ids } = metaFormat(tokenizer).encode(messages as readonly Message<PlainPart>[], {
      ...(tools && { tools }),
    });
    const request = {
      tokens: ids,
      maxTokens,
      stop: strings,
      constraint,
      signal,
      routes,
      sampling,
      tools: tools?.map(({ name }) => name),
    };
    yield* complete(this.engine, tokenizer, stop, request, this.#grammars);
  }

  async *complete(): AsyncIterable<Piece> {}
  encode = async () => new Int32Array();
  promptLogprobs = async () => [];
  encodeChat = async () => new Int32Array();
  decode = async () => "";
  stats = async () => this.engine.stats();
}

let model: RandomModel;
let handler: Handler;
beforeAll(() => {
  model = new RandomModel();
  handler = createHandler(model, { name: "random" });
});
afterAll(() => model.engine.close());

const schema = {
  type: "object",
  properties: { city: { type: "string", maxLength: 8 }, days: { type: "integer", minimum: 1, maximum: 7 } },
  required: ["city", "days"],
  additionalProperties: false,
};
interface Trip {
  readonly city: string;
  readonly days: number;
}
function checkTrip(trip: Trip): void {
  expect(Object.keys(trip)).toEqual(["city", "days"]);
  expect(Array.from(trip.city).length).toBeLessThanOrEqual(8);
  expect(trip.days >= 1 && trip.days <= 7 && Number.isInteger(trip.days)).toBe(true);
}

const seeds = Array.from({ length: 8 }, (_, seed) => seed);
const hello = { messages: [user("Hello")], temperature: 1 };
const asked = (path: string, body: object) => handler(post(path, body)).then(json);

describe("/v1/chat/completions", () => {
  const path = "/v1/chat/completions";
  const format = { response_format: { type: "json_schema", json_schema: { name: "trip", schema, strict: true } } };
  const trip = { type: "function", function: { name: "trip", parameters: schema } };
  const nothing = { type: "function", function: { name: "nothing" } };

  it("answers what a schema allows, whole and streamed", async () => {
    for (const seed of seeds) {
      const { choices } = await asked(path, { ...hello, ...format, seed });
      expect(choices[0].finish_reason).toBe("stop");
      checkTrip(JSON.parse(choices[0].message.content));
      const events = await eventsOf(await handler(post(path, { ...hello, ...format, seed, stream: true })));
      expect(events.map(({ data }) => data.choices?.[0]?.delta.content ?? "").join("")).toBe(
        choices[0].message.content,
      );
    }
  });

  it("answers with any object where JSON is asked for", async () => {
    for (const seed of seeds) {
      const { choices } = await asked(path, {
        ...hello,
        response_format: { type: "json_object" },
        seed,
        max_tokens: 2000,
      });
      const { content } = choices[0].message;
      if (choices[0].finish_reason === "stop") expect(typeof JSON.parse(content)).toBe("object");
      expect(content[0]).toBe("{");
    }
  });

  it("calls a tool where it has to, and says nothing", async () => {
    for (const seed of seeds) {
      const body = { ...hello, seed, tools: [trip, nothing], tool_choice: "required", parallel_tool_calls: false };
      const [{ message, finish_reason }] = (await asked(path, body)).choices;
      expect([message.content, finish_reason, message.tool_calls.length]).toEqual([null, "tool_calls", 1]);
      const { name, arguments: given } = message.tool_calls[0].function;
      if (name === "trip") checkTrip(JSON.parse(given));
      else expect([name, given]).toEqual(["nothing", "{}"]);
      const events = await eventsOf(await handler(post(path, { ...body, stream: true })));
      const deltas = events.flatMap(({ data }) => data.choices?.[0]?.delta ?? []);
      expect(deltas.map(({ content }) => content ?? "").join("")).toBe("");
      expect(deltas.flatMap(({ tool_calls }) => tool_calls ?? []).map((call) => call.function)).toEqual([
        message.tool_calls[0].function,
      ]);
    }
  });

  it("calls only tools that are allowed, where it has to and where it may", async () => {
    const tools = [trip, nothing, { type: "function", function: { name: "other" } }];
    const of = (mode: string, ...names: string[]) => ({
      type: "allowed_tools",
      allowed_tools: { mode, tools: names.map((name) => ({ type: "function", function: { name } })) },
    });
    const called = new Set<string>();
    for (const seed of seeds) {
      const body = { ...hello, seed, tools, max_tokens: 2000 };
      const ask = async (tool_choice: object) => (await asked(path, { ...body, tool_choice })).choices[0];
      const { message, finish_reason } = await ask(of("required", "nothing", "other"));
      expect([message.content, finish_reason]).toEqual([null, "tool_calls"]);
      for (const call of message.tool_calls) called.add(call.function.name);
      const free = (await ask(of("auto", "nothing"))).message;
      for (const call of free.tool_calls ?? []) expect(call.function.name).toBe("nothing");
    }
    expect(called).toEqual(new Set(["nothing", "other"]));
  });

  it("calls the tool that is named, and several where it may", async () => {
    let most = 0;
    for (const seed of seeds) {
      const named = {
        ...hello,
        seed,
        tools: [nothing, trip],
        tool_choice: { type: "function", function: { name: "trip" } },
      };
      const [{ message }] = (await asked(path, named)).choices;
      expect(message.tool_calls.length).toBe(1);
      checkTrip(JSON.parse(message.tool_calls[0].function.arguments));
      const parallel = { ...hello, seed, tools: [trip], tool_choice: "required", max_tokens: 1000 };
      const { tool_calls = [] } = (await asked(path, parallel)).choices[0].message;
      for (const call of tool_calls) checkTrip(JSON.parse(call.function.arguments));
      most = Math.max(most, tool_calls.length);
    }
    expect(most).toBeGreaterThan(1);
  });

  it("is cut by max_tokens, leaks nothing of a call, and says so", async () => {
    const body = { ...hello, max_tokens: 6, tools: [trip], tool_choice: "required" };
    const [{ message, finish_reason }] = (await asked(path, body)).choices;
    expect([message.content, message.tool_calls, finish_reason]).toEqual(["", undefined, "length"]);
  });

  it("tells the calls that ended before it was cut", async () => {
    const body = { ...hello, max_tokens: 60, tools: [nothing], tool_choice: "required" };
    let most = 0;
    for (const seed of seeds) {
      const [{ message, finish_reason }] = (await asked(path, { ...body, seed })).choices;
      if (finish_reason !== "length") continue;
      for (const call of message.tool_calls ?? [])
        expect(call.function).toMatchObject({ name: "nothing", arguments: "{}" });
      most = Math.max(most, message.tool_calls?.length ?? 0);
    }
    expect(most).toBeGreaterThan(0);
  });

  it("calls or answers in a form where both are asked for", async () => {
    let calls = 0;
    for (const seed of Array.from({ length: 24 }, (_, seed) => seed)) {
      const [{ message }] = (await asked(path, { ...hello, ...format, seed, tools: [trip], max_tokens: 1000 })).choices;
      if (message.tool_calls) calls++;
      else checkTrip(JSON.parse(message.content));
    }
    expect(calls).toBeGreaterThan(0);
    expect(calls).toBeLessThan(24);
  });

  it.each([
    [
      {
        response_format: {
          type: "json_schema",
          json_schema: { name: "x", schema: { properties: { a: { not: { minLength: 3 } } } } },
        },
      },
      "response_format",
      null,
      '"not"',
    ],
    [
      { response_format: { type: "json_schema", json_schema: { name: "x", schema: { $ref: "#/$defs/y" } } } },
      "response_format",
      null,
      "#/$defs/y",
    ],
    [
      { response_format: { type: "json_schema", json_schema: { name: "x", schema: { enum: [] } } } },
      "response_format",
      null,
      "no value",
    ],
    [
      { tools: [{ type: "function", function: { name: "f", strict: true, parameters: { type: "array" } } }] },
      "tools",
      "invalid_function_parameters",
      '"f"',
    ],
  ])("refuses %j in OpenAI's words, streamed or not", async (more, param, code, message) => {
    for (const stream of [false, true]) {
      const response = await handler(post(path, { ...hello, ...more, stream }));
      expect(response.status).toBe(400);
      const { error } = await json(response);
      expect(error).toMatchObject({ type: "invalid_request_error", param, code });
      expect(error.message).toMatch(/^Invalid schema for /);
      expect(error.message).toContain(message);
    }
  });
});

it("/v1/responses answers what a schema allows, and calls where it has to", async () => {
  for (const seed of seeds) {
    const body = { input: `Hello ${seed}`, temperature: 1 };
    const text = { format: { type: "json_schema", name: "trip", schema } };
    checkTrip(JSON.parse((await asked("/v1/responses", { ...body, text })).output[0].content[0].text));
    const tools = [{ type: "function", name: "trip", parameters: schema, strict: true }];
    const { output } = await asked("/v1/responses", {
      ...body,
      tools,
      tool_choice: { type: "function", name: "trip" },
    });
    expect(output.map(({ type }: { type: string }) => type)).toEqual(["function_call"]);
    checkTrip(JSON.parse(output[0].arguments));
  }
});

it("/v1/messages answers what a schema allows, and calls where it has to", async () => {
  const tool = { name: "trip", input_schema: schema };
  for (const seed of seeds) {
    const body = { messages: [user(`Hello ${seed}`)], max_tokens: 1000, temperature: 1 };
    const output_config = { format: { type: "json_schema", schema } };
    checkTrip(JSON.parse((await asked("/v1/messages", { ...body, output_config })).content[0].text));
    for (const tool_choice of [
      { type: "any", disable_parallel_tool_use: true },
      { type: "tool", name: "trip" },
    ]) {
      const { content, stop_reason } = await asked("/v1/messages", { ...body, tools: [tool], tool_choice });
      expect([content.length, content[0].type, stop_reason]).toEqual([1, "tool_use", "tool_use"]);
      checkTrip(content[0].input);
    }
  }
  const bad = {
    messages: [user("x")],
    max_tokens: 9,
    tools: [{ name: "f", input_schema: { type: "null" } }],
    tool_choice: { type: "any" },
  };
  const refused = await asked("/v1/messages", bad);
  expect(refused).toMatchObject({ type: "error", error: { type: "invalid_request_error" } });
});
