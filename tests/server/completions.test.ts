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

  it.each([
    [{}, "prompt"],
    [{ prompt: [] }, "prompt"],
    [{ prompt: "x", suffix: "y" }, "suffix"],
    [{ prompt: "x", best_of: 3 }, "best_of"],
    [{ prompt: "x", echo: true, logprobs: 1 }, "echo"],
    [{ prompt: [1], echo: true }, "echo"],
  ])("refuses %j and names the field", async (body, param) => {
    const { handler } = served({ lines: [] });
    const response = await handler(post(path, body));
    expect(response.status).toBe(400);
    expect((await json(response)).error.param).toBe(param);
  });
});
