import { describe, expect, it } from "vitest";
import { eventsOf, json, post, served } from "./scripted.ts";

const path = "/v1/completions";

describe("POST /v1/completions", () => {
  it("goes on from a text, behind a begin-of-text token, for 16 tokens unless told otherwise", async () => {
    const { model, handler } = served({ lines: ["a", "b"] });
    const body = await json(await handler(post(path, { prompt: "Once" })));
    expect(model.asked[0]).toMatchObject({ prompt: "Once", bos: true, maxTokens: 16 });
    expect(body).toMatchObject({
      object: "text_completion",
      choices: [{ index: 0, text: "ab", logprobs: null, finish_reason: "stop" }],
      usage: { prompt_tokens: 7, completion_tokens: 3, total_tokens: 10 },
    });
  });

  it("takes ids, and several prompts; each counts once for all its replies", async () => {
    const { model, handler } = served({ lines: ["a"] });
    await handler(post(path, { prompt: [1, 2], add_special_tokens: false }));
    expect(model.asked[0]).toMatchObject({ prompt: [1, 2], bos: false });
    const { choices, usage } = await json(await handler(post(path, { prompt: ["x", "y"], n: 2, echo: true })));
    expect(choices.map(({ text }: { text: string }) => text)).toEqual(["xa", "xa", "ya", "ya"]);
    expect(usage.prompt_tokens).toBe(14);
  });

  it("streams, echo first, and ends with what all replies took", async () => {
    const { handler } = served({ lines: ["a", "b"] });
    const body = { prompt: ["x", "y"], echo: true, stream: true, stream_options: { include_usage: true } };
    const events = (await eventsOf(await handler(post(path, body)))).map(({ data }) => data);
    const texts = ["", ""];
    for (const { choices } of events.slice(0, -2)) texts[choices[0].index] += choices[0].text;
    expect(texts).toEqual(["xab", "yab"]);
    expect(events.at(-2)).toMatchObject({ choices: [], usage: { prompt_tokens: 14 } });
    expect(events.at(-1)).toBe("[DONE]");
  });

  it("lists log-probabilities side by side, the same in a stream", async () => {
    const { handler } = served({ lines: ["ab", "c"] });
    const whole = await json(await handler(post(path, { prompt: "x", logprobs: 1 })));
    expect(whole.choices[0].logprobs).toEqual({
      tokens: ["ab", "c"],
      token_logprobs: [-1, -2],
      top_logprobs: [{ ab: -1 }, { c: -2 }],
      text_offset: [0, 2],
    });
    const events = await eventsOf(await handler(post(path, { prompt: "x", logprobs: 1, stream: true })));
    const offsets = events.flatMap(({ data }) => data.choices?.[0].logprobs?.text_offset ?? []);
    expect(offsets).toEqual([0, 2]);
  });

  it("tells what the model thought of the prompt, of which the token that begins a text is no part", async () => {
    const { model, handler } = served({ lines: ["c"] });
    const asked = { prompt: "ab", echo: true, logprobs: 1, max_tokens: 1 };
    const { choices, usage } = await json(await handler(post(path, asked)));
    const expected = {
      tokens: ["a", "b", "c"],
      token_logprobs: [-1, -2, -1],
      top_logprobs: [{ "?": -0.5 }, { "?": -0.5 }, { c: -1 }],
      text_offset: [0, 1, 2],
    };
    expect(choices[0]).toMatchObject({ text: "abc", logprobs: expected });
    expect(usage.prompt_tokens).toBe(7);
    const events = await eventsOf(await handler(post(path, { ...asked, stream: true })));
    const parts = events.flatMap(({ data }) => data.choices?.[0].logprobs ?? []);
    for (const name of Object.keys(expected) as (keyof typeof expected)[])
      expect(parts.flatMap((part) => part[name])).toEqual(expected[name]);
    expect(model.asked).toHaveLength(2);
  });

  it("tells of prompts alone, text or ids, and computes no reply", async () => {
    const { model, handler } = served({ lines: [] });
    const prompt = [
      [97, 98, 99],
      [100, 101],
    ];
    const body = await json(await handler(post(path, { prompt, echo: true, logprobs: 0, max_tokens: 0 })));
    expect(body.choices).toMatchObject([
      {
        ...{ text: "abc", finish_reason: "length" },
        logprobs: { tokens: ["a", "b", "c"], token_logprobs: [null, -1, -2], top_logprobs: [null, {}, {}] },
      },
      { text: "de", finish_reason: "length" },
    ]);
    expect(body.usage).toMatchObject({ prompt_tokens: 5, completion_tokens: 0 });
    const plain = await json(await handler(post(path, { prompt: "ab", echo: true, max_tokens: 0 })));
    expect(plain).toMatchObject({ choices: [{ text: "ab", logprobs: null }], usage: { prompt_tokens: 3 } });
    expect(model.asked).toEqual([]);
  });

  it("refuses to tell more of prompts than it can hold, before anything is computed", async () => {
    const { model, handler } = served({ lines: [] });
    const prompt = Array(500).fill(Array(100).fill(97)); // 50,000 tokens
    const ask = (logprobs: number, more: object) =>
      handler(post(path, { prompt, echo: true, logprobs, max_tokens: 0, ...more }));
    expect((await ask(19, {})).status).toBe(200);
    model.promptLogprobs = async () => {
      throw new Error("computed");
    };
    for (const more of [{}, { stream: true }, { prompt: Array(500).fill("a".repeat(100)) }]) {
      const response = await ask(20, more);
      expect(response.status).toBe(400);
      expect((await json(response)).error).toMatchObject({
        ...{ type: "invalid_request_error", param: "prompt" },
        message: expect.stringContaining("1,048,576 log-probabilities"),
      });
    }
  });

  it("takes more prompts than are computed at once, and leaves room for others", async () => {
    const { model, handler } = served({ lines: ["a"] }, { limits: { concurrent: 4 } });
    let most = 0;
    let running = 0;
    const complete = model.complete.bind(model);
    model.complete = async function* (prompt, options) {
      most = Math.max(most, ++running);
      for await (const piece of complete(prompt, options)) {
        await new Promise((resolve) => setTimeout(resolve));
        yield piece;
      }
      running--;
    };
    const prompt = Array.from({ length: 40 }, (_, i) => `${i} `);
    const { choices } = await json(await handler(post(path, { prompt, n: 2, echo: true })));
    expect(choices.map(({ text }: { text: string }) => text)).toEqual(prompt.flatMap((p) => [`${p}a`, `${p}a`]));
    expect(most).toBe(2);
    const tooMany = await handler(post(path, { prompt: Array(2049).fill("x") }));
    expect((await json(tooMany)).error).toMatchObject({ param: "prompt", message: expect.stringContaining("2048") });
  });

  it.each([
    [{}, "prompt"],
    [{ prompt: [] }, "prompt"],
    [{ prompt: "x", suffix: "y" }, "suffix"],
    [{ prompt: "x", best_of: 3 }, "best_of"],
    [{ prompt: "x", max_tokens: 0 }, "max_tokens"],
  ])("refuses %j and names the field", async (body, param) => {
    const { handler } = served({ lines: [] });
    const response = await handler(post(path, body));
    expect(response.status).toBe(400);
    expect((await json(response)).error.param).toBe(param);
  });
});
