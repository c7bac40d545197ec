import { describe, expect, it } from "vitest";
import { RequestError } from "../../src/tensor/errors.ts";
import { call, eventsOf, json, post, served } from "./scripted.ts";

const path = "/v1/responses";
const tool = { type: "function", name: "weather", parameters: { type: "object" }, strict: true };

describe("POST /v1/responses", () => {
  it("answers a text, with instructions before it", async () => {
    const { model, handler } = served({ lines: ["Hi", " there"] });
    const body = { input: "Hello", instructions: "Be short.", max_output_tokens: 9, metadata: { a: "b" } };
    const answer = await json(await handler(post(path, body)));
    expect(model.asked[0]).toMatchObject({
      maxTokens: 9,
      messages: [
        { role: "system", content: "Be short." },
        { role: "user", content: "Hello" },
      ],
    });
    expect(answer).toMatchObject({
      ...{ object: "response", status: "completed", error: null, store: false, metadata: { a: "b" } },
      id: expect.stringMatching(/^resp_/),
      output: [
        {
          ...{ type: "message", role: "assistant", status: "completed" },
          content: [{ type: "output_text", text: "Hi there", annotations: [] }],
        },
      ],
      usage: { input_tokens: 7, input_tokens_details: { cached_tokens: 3 }, output_tokens: 3, total_tokens: 10 },
    });
  });

  it("says why a reply is incomplete", async () => {
    const { handler } = served({ lines: ["Hi"], finishReason: "length" });
    const answer = await json(await handler(post(path, { input: "Hello" })));
    expect(answer).toMatchObject({ status: "incomplete", incomplete_details: { reason: "max_output_tokens" } });
  });

  it("reads a conversation of items: calls belong to what was said before them, results follow in their order", async () => {
    const { model, handler } = served({ lines: ["x"] });
    const png = `data:image/png;base64,${btoa("\x89PNG")}`;
    const input = [
      { role: "developer", content: "Be short." },
      {
        role: "user",
        content: [
          { type: "input_text", text: "What is it?" },
          { type: "input_image", image_url: png, detail: "auto" },
        ],
      },
      { type: "reasoning", id: "rs_1", summary: [] },
      { type: "message", role: "assistant", content: [{ type: "output_text", text: "I look.", annotations: [] }] },
      { type: "function_call", call_id: "1", name: "f", arguments: '{"n":1}' },
      { type: "function_call", call_id: "2", name: "f", arguments: '{"n":2}' },
      { type: "function_call_output", call_id: "2", output: "second" },
      { type: "function_call_output", call_id: "1", output: [{ type: "input_text", text: "first" }] },
      { role: "assistant", content: "Done." },
      { role: "user", content: "Thanks" },
    ];
    expect((await handler(post(path, { input }))).status).toBe(200);
    expect(model.asked[0]!.messages).toEqual([
      { role: "system", content: "Be short." },
      {
        role: "user",
        content: [
          { type: "text", text: "What is it?" },
          { type: "image", data: Uint8Array.of(0x89, 80, 78, 71) },
        ],
      },
      {
        role: "assistant",
        content: [{ type: "text", text: "I look." }],
        toolCalls: [
          { name: "f", arguments: { n: 1 } },
          { name: "f", arguments: { n: 2 } },
        ],
      },
      { role: "tool", content: [{ type: "text", text: "first" }] },
      { role: "tool", content: "second" },
      { role: "assistant", content: "Done." },
      { role: "user", content: "Thanks" },
    ]);
  });

  it("streams events in order, and what they add up to is the whole answer", async () => {
    const { handler } = served({ lines: ["Let", " me see", call("weather", { city: "Ulm" }), "Done"] });
    const events = await eventsOf(await handler(post(path, { input: "Hello", tools: [tool], stream: true })));
    expect(events.map(({ event }) => event)).toEqual([
      "response.created",
      "response.in_progress",
      "response.output_item.added",
      "response.content_part.added",
      "response.output_text.delta",
      "response.output_text.delta",
      "response.output_text.done",
      "response.content_part.done",
      "response.output_item.done",
      "response.output_item.added",
      "response.function_call_arguments.delta",
      "response.function_call_arguments.done",
      "response.output_item.done",
      "response.output_item.added",
      "response.content_part.added",
      "response.output_text.delta",
      "response.output_text.done",
      "response.content_part.done",
      "response.output_item.done",
      "response.completed",
    ]);
    expect(events.map(({ data }) => data.sequence_number)).toEqual(events.map((_, i) => i));
    expect(events.every(({ event, data }) => data.type === event)).toBe(true);
    const { response } = events.at(-1)!.data;
    const done = events.filter(({ event }) => event === "response.output_item.done").map(({ data }) => data);
    expect(done.map(({ item }) => item)).toEqual(response.output);
    expect(done.map(({ output_index }) => output_index)).toEqual([0, 1, 2]);
    expect(response.output.map((item: { type: string }) => item.type)).toEqual(["message", "function_call", "message"]);
    expect(response.output[1]).toMatchObject({ name: "weather", arguments: '{"city":"Ulm"}' });
  });

  it("has a message even where nothing was said", async () => {
    const { handler } = served({ lines: [] });
    const whole = await json(await handler(post(path, { input: "x" })));
    expect(whole.output).toMatchObject([{ type: "message", content: [{ text: "" }] }]);
    const events = await eventsOf(await handler(post(path, { input: "x", stream: true })));
    expect(events.at(-1)!.data.response.output).toMatchObject([{ type: "message", content: [{ text: "" }] }]);
  });

  it("asks for constraints, and for log-probabilities", async () => {
    const { model, handler } = served({ lines: ["a"] });
    const asked = async (more: object) => {
      const answer = await json(await handler(post(path, { input: "x", ...more })));
      return { ...model.asked.at(-1)!, answer };
    };
    const tools = [tool];
    expect((await asked({ tools, tool_choice: "required" })).constraint).toMatchObject({ type: "tool_calls" });
    const named = { type: "function", name: "weather" };
    expect((await asked({ tools, tool_choice: named })).constraint).toMatchObject({ parallel: false });
    const two = [...tools, { ...tool, name: "other" }];
    const some = { type: "allowed_tools", mode: "auto", tools: [named] };
    const free = await asked({ tools: two, tool_choice: some });
    expect(free.tools).toMatchObject([{ name: "weather" }, { name: "other" }]);
    expect(free.constraint).toMatchObject({ tools: [{ name: "weather" }], others: ["other"] });
    expect((await asked({ tools: two, tool_choice: { ...some, mode: "required" } })).constraint).not.toHaveProperty(
      "otherwise",
    );
    const format = { type: "json_schema", name: "x", schema: { type: "object" }, strict: true };
    expect((await asked({ text: { format } })).constraint).toEqual({ type: "json_schema", schema: format.schema });
    const { logprobs, answer } = await asked({ top_logprobs: 1, include: ["message.output_text.logprobs"] });
    expect(logprobs).toBe(1);
    expect(answer.output[0].content[0].logprobs).toMatchObject([{ token: "a", top_logprobs: [{ token: "a" }] }]);
  });

  it("takes one tile where all images are asked for in low detail", async () => {
    const { model, handler } = served({ lines: ["x"] });
    const image = (detail: string) => ({ type: "input_image", image_url: "data:image/png;base64,AAAA", detail });
    const calls = [
      { type: "function_call", call_id: "1", name: "f", arguments: "{}" },
      { type: "function_call_output", call_id: "1", output: [image("low")] },
    ];
    for (const detail of ["low", "high"])
      await handler(post(path, { input: [{ role: "user", content: [image(detail)] }, ...calls] }));
    expect(model.asked.map(({ media }) => media)).toEqual([{ maxTiles: 1 }, undefined]);
  });

  it.each([
    [{}, "input"],
    [{ input: "x", previous_response_id: "resp_1" }, "previous_response_id"],
    [{ input: "x", tools: [{ type: "web_search" }] }, "tools[0].type"],
    [{ input: "x", background: true }, "background"],
    [{ input: [{ type: "item_reference", id: "1" }] }, "input[0]"],
    [
      {
        input: [
          { role: "user", content: "x" },
          { type: "reasoning" },
          { type: "function_call", call_id: "1", name: "f", arguments: "{" },
        ],
      },
      "input[2].arguments",
    ],
  ])("refuses %j and names the field", async (body, param) => {
    const { handler } = served({ lines: [] });
    const response = await handler(post(path, body));
    expect(response.status).toBe(400);
    expect((await json(response)).error.param).toContain(param);
  });

  it("tells in the stream what goes wrong there", async () => {
    const { handler } = served({ lines: ["a", new Error("secret")] }, { onError: () => {} });
    const events = await eventsOf(await handler(post(path, { input: "x", stream: true })));
    expect(events.at(-1)).toMatchObject({
      event: "error",
      data: {
        ...{ type: "error", code: "server_error", message: expect.any(String), sequence_number: events.length - 1 },
        error: { type: "server_error", message: expect.any(String) },
      },
    });
    expect(JSON.stringify(events)).not.toContain("secret");
  });

  it("refuses what is found wrong before the first token with its status, streamed too", async () => {
    const { handler } = served({ lines: [new RequestError("topP is 2; expected less")] });
    const response = await handler(post(path, { input: "x", stream: true }));
    expect(response.status).toBe(400);
    expect((await json(response)).error.message).toBe("topP is 2; expected less");
  });
});
