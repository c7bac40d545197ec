import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it, vi } from "vitest";
import { openCheckpoint } from "../../src/checkpoint/open.ts";
import type { Engine, EngineOptions } from "../../src/engine/engine.ts";
import type { Generated, GenerateRequest } from "../../src/engine/requests.ts";
import { mapParameters } from "../../src/model/parameters.ts";
import { forward, type Step } from "../../src/model/transformer.ts";
import { CapacityError, RequestError } from "../../src/tensor/errors.ts";
import type { TensorView } from "../../src/tensor/tensor.ts";
import { backend, config, open, parameters, prompt } from "./random-model.ts";

async function all(pieces: AsyncIterable<Generated>): Promise<Generated[]> {
  const list: Generated[] = [];
  for await (const piece of pieces) list.push(piece);
  return list;
}

async function tokens(engine: Engine, request: GenerateRequest): Promise<number[]> {
  return (await all(engine.generate(request))).map(({ token }) => token);
}

/** The logits of a prompt, position after position. */
async function logits(engine: Engine, of: number[]): Promise<number[]> {
  const rows: number[] = [];
  for await (const { position, logits } of engine.logits(of)) {
    expect(position * config.vocabSize).toBe(rows.length);
    rows.push(...logits);
  }
  return rows;
}

/** The model without a cache: one pass over everything. */
async function onePass(of: number[]): Promise<number[]> {
  const step: Step = {
    tokens: Int32Array.from(of),
    segments: [{ row: 0, length: of.length, position: 0, sequence: 0 }],
    wanted: Int32Array.from(of.keys()),
  };
  return [...(await backend.read(await forward(parameters, config, step)))];
}

const greedy = { temperature: 0 };
// on this backend a row's numbers do not depend on the rows beside it, so equalities hold to the bit

describe("the engine computes what the model computes", () => {
  const text = prompt(45); // six chunks of 8, the last one begun

  it.each([1, 3, 8, 512])("in slices of %i as in one pass, past five chunk boundaries", async (stepTokens) => {
    expect(await logits(open({ stepTokens }), text)).toEqual(await onePass(text));
  });

  it("token by token after a prompt, past three chunk boundaries", async () => {
    const reply = await tokens(open(), { tokens: prompt(5), maxTokens: 30, sampling: greedy });
    const known = [...prompt(5), ...reply];
    const rows = await onePass(known);
    const best = known.map((_, p) => {
      const row = rows.slice(p * config.vocabSize, (p + 1) * config.vocabSize);
      return row.indexOf(Math.max(...row));
    });
    expect(reply).toEqual(best.slice(4, -1));
  });

  it("in slices of 64 MB at most, or of one row", async () => {
    const rowsOf = async (vocabSize: number) => {
      const wide: EngineOptions["forward"] = async (_p, c, { wanted }) =>
        backend.from(new Float32Array(wanted.length * c.vocabSize), [wanted.length, c.vocabSize]);
      const engine = open({ config: { ...config, vocabSize }, forward: wide });
      const rows: number[] = [];
      for await (const { logits } of engine.logits([1, 2, 3])) rows.push(logits.length / vocabSize);
      return rows;
    };
    expect(await rowsOf(2 ** 23)).toEqual([2, 1]);
    expect(await rowsOf(2 ** 23 + 1)).toEqual([1, 1, 1]);
  });

  it("in buffers that hold the rows of one request only", async () => {
    const engine = open();
    const sizes = async (of: number[]) => {
      for await (const { logits } of engine.logits(of)) expect(logits.buffer.byteLength).toBe(logits.byteLength);
    };
    await Promise.all([sizes(prompt(7)), sizes(prompt(5))]);
  });

  it("for a batch of different prompts as for each alone", async () => {
    const requests = [1, 3, 9, 17, 30].map((length, i) => ({
      tokens: prompt(length, i),
      maxTokens: 12 + i,
      sampling: { temperature: 1.5, topP: 0.95, seed: i },
    }));
    const engine = open({ stepTokens: 7 });
    const together = await Promise.all(requests.map((request) => tokens(engine, request)));
    for (const [i, request] of requests.entries()) expect(await tokens(open(), request)).toEqual(together[i]);
  });

  it("with beginnings shared as without, and shares them", async () => {
    const beginning = prompt(26);
    const requests = [0, 1, 2].map((i) => ({
      tokens: [...beginning, ...prompt(i * 5 + 1, i)],
      maxTokens: 10,
      sampling: greedy,
    }));
    const results = async (sharePrefixes: boolean) => {
      const engine = open({ sharePrefixes });
      const replies: number[][] = [];
      const cached: number[] = [];
      for (const request of requests) {
        const pieces = await all(engine.generate(request));
        replies.push(pieces.map(({ token }) => token));
        cached.push(pieces.at(-1)!.finish!.cachedTokens);
      }
      return { replies, cached };
    };
    const [on, off] = [await results(true), await results(false)];
    expect(on.replies).toEqual(off.replies);
    expect(on.cached).toEqual([0, 24, 24]);
    expect(off.cached).toEqual([0, 0, 0]);
  });

  it("when replies outgrow the cache and sequences have to wait and start again", async () => {
    const requests = [0, 1, 2, 3].map((i) => ({ tokens: prompt(10, i), maxTokens: 40, sampling: greedy }));
    const small = open({ context: 56 }); // seven blocks for four sequences that need seven each
    const together = await Promise.all(requests.map((request) => tokens(small, request)));
    for (const [i, request] of requests.entries()) expect(await tokens(open(), request)).toEqual(together[i]);
  });

  it("with the same tokens for the same seed, whoever else is there", async () => {
    const request = (seed: number) => ({
      tokens: prompt(6),
      maxTokens: 20,
      sampling: { temperature: 1, topP: 1, seed },
    });
    const busy = open();
    const others = [7, 8, 9].map((seed) => tokens(busy, request(seed)));
    const alone = await tokens(open(), request(5));
    expect(await tokens(busy, request(5))).toEqual(alone);
    expect(await others[0]).not.toEqual(alone);
  });
});

describe("with the published implementation's numbers", () => {
  it.each(["chunk-16", "scout", "top-2"])("%s: the engine's logits are those", async (name) => {
    const folder = join(import.meta.dirname, "../golden/llama4", name);
    const expected = JSON.parse(readFileSync(join(folder, "expected.json"), "utf8"));
    const checkpoint = await openCheckpoint(folder);
    const views: TensorView[] = [];
    mapParameters(checkpoint.parameters, (view) => views.push(view));
    const tensors = await backend.load(views);
    await checkpoint.close();
    let next = 0;
    const loaded = mapParameters(checkpoint.parameters, () => tensors[next++]!);
    const engine = open({ parameters: loaded, config: checkpoint.config, stepTokens: 7 });
    const got: number[] = [];
    for await (const { logits } of engine.logits(expected.input_ids)) got.push(...logits);
    const worst = (expected.logits.flat() as number[]).reduce((most, x, i) => Math.max(most, Math.abs(x - got[i]!)), 0);
    expect(worst).toBeLessThan(2e-4);
  });
});

// A model that knows nothing: uniform logits, and a backend that only keeps arrays.
const uniformModel = {
  forward: async (_p: unknown, c: typeof config, { wanted }: Step) =>
    backend.from(new Float32Array(wanted.length * c.vocabSize), [wanted.length, c.vocabSize]),
};

describe("a request", () => {
  it("ends with a stop token, which it gives", async () => {
    const sampling = { temperature: 0, logitBias: { 9: 50 } };
    const pieces = await all(open(uniformModel).generate({ tokens: [1], sampling, stopTokens: new Set([9]) }));
    expect(pieces).toHaveLength(1);
    expect(pieces[0]).toMatchObject({ token: 9, finish: { reason: "stop", promptTokens: 1, completionTokens: 1 } });
  });

  it("ends where it has as many tokens as it may have", async () => {
    const pieces = await all(open(uniformModel).generate({ tokens: [1], maxTokens: 3, sampling: greedy }));
    expect(pieces.map((p) => p.token)).toEqual([0, 0, 0]);
    expect(pieces.map((p) => p.finish?.reason)).toEqual([undefined, undefined, "length"]);
  });

  it("ends where the context is full; the last token needs no room", async () => {
    const pieces = await all(open({ ...uniformModel, context: 20 }).generate({ tokens: prompt(15), sampling: greedy }));
    expect(pieces).toHaveLength(6);
    expect(pieces.at(-1)!.finish!.reason).toBe("length");
  });

  it("tells its log-probabilities", async () => {
    const sampling = { temperature: 0, logprobs: 2 };
    const [piece] = await all(open(uniformModel).generate({ tokens: [1], maxTokens: 1, sampling }));
    expect(piece!.logprob).toBeCloseTo(-Math.log(32), 6);
    expect(piece!.top).toHaveLength(2);
  });

  it("is refused before anything is computed", () => {
    const steps: Step[] = [];
    const engine = open({
      context: 100,
      forward: (p, c, step) => {
        steps.push(step);
        return forward(p, c, step);
      },
    });
    const refused = (request: Partial<GenerateRequest>) => () => engine.generate({ tokens: [1], ...request });
    expect(refused({ tokens: [] })).toThrow(new RequestError("the prompt has no tokens; expected at least one"));
    expect(refused({ tokens: [3, 32] })).toThrow(
      new RequestError("token 1 of the prompt is 32; expected an id from 0 to 31"),
    );
    expect(refused({ maxTokens: 0 })).toThrow(new RequestError("maxTokens is 0; expected a whole number from 1"));
    expect(refused({ sampling: { temperature: -1 } })).toThrow(
      new RequestError("temperature is -1; expected a number from 0 to 2"),
    );
    expect(refused({ tokens: prompt(101) })).toThrow(
      new CapacityError("the prompt has 101 tokens and the cache holds 100; open the model with a larger `context`"),
    );
    expect(refused({ tokens: prompt(513) })).toThrow(
      new RequestError("the prompt has 513 tokens and the model's context 512; expected a shorter prompt"),
    );
    expect(refused({ signal: AbortSignal.abort() })).toThrow("aborted");
    expect(steps).toEqual([]);
  });

  it("that is cancelled ends within one step, and the others go on", async () => {
    const cancel = new AbortController();
    const steps: number[][] = [];
    const engine = open({
      forward: (p, c, step) => {
        steps.push(step.segments.map((s) => s.sequence));
        if (steps.length === 5) cancel.abort(new Error("enough"));
        return uniformModel.forward(p, c, step);
      },
    });
    const first = all(engine.generate({ tokens: [1], maxTokens: 100, signal: cancel.signal }));
    const second = all(engine.generate({ tokens: [2], maxTokens: 20 }));
    await expect(first).rejects.toThrow("enough");
    expect(await second).toHaveLength(20);
    expect(steps.findLastIndex((sequences) => sequences.includes(0))).toBe(4);
  });

  it("ends when its reader leaves the loop", async () => {
    let steps = 0;
    const engine = open({
      forward: (p, c, step) => {
        steps++;
        return uniformModel.forward(p, c, step);
      },
    });
    for await (const _ of engine.generate({ tokens: [1] })) break;
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(steps).toBeLessThan(5);
  });

  it("fails alone when its step fails", async () => {
    let steps = 0;
    const engine = open({
      forward: (p, c, step) => {
        if (++steps === 3) throw new Error("the fan has stopped");
        return uniformModel.forward(p, c, step);
      },
    });
    await expect(all(engine.generate({ tokens: [1] }))).rejects.toThrow("the fan has stopped");
    expect(await all(engine.generate({ tokens: [1], maxTokens: 5 }))).toHaveLength(5);
  });

  it("is rejected when the engine is closed", async () => {
    const engine = open(uniformModel);
    const reply = all(engine.generate({ tokens: [1] }));
    const closed = expect(reply).rejects.toThrow("the engine was closed");
    await engine.close();
    await closed;
    expect(() => engine.generate({ tokens: [1] })).toThrow("the engine was closed");
  });

  it("does not keep timers from firing while it runs, and ends by one", async () => {
    const cancel = new AbortController();
    const engine = open({ ...uniformModel, context: 100_000 });
    setTimeout(() => cancel.abort(new Error("heard")), 20);
    const reply = all(engine.generate({ tokens: [1], signal: cancel.signal })); // some seconds, were it not heard
    await expect(reply).rejects.toThrow("heard");
  });

  it.each([
    ["the model itself", {}],
    ["a model of its own", uniformModel],
  ] as const)("has each token of %s before the next is computed", async (_, options) => {
    const engine = open(options);
    const steps: number[] = [];
    for await (const _ of engine.generate({ tokens: [1], maxTokens: 30, sampling: greedy }))
      steps.push(engine.stats().steps);
    expect(steps).toEqual(Array.from({ length: 30 }, (_, i) => i + 1));
  });
});

describe("many requests at once", () => {
  it("are all served, a few at a time", async () => {
    const widths: number[] = [];
    const engine = open({
      ...uniformModel,
      sequences: 4,
      forward: (p, c, step) => {
        widths.push(step.segments.length);
        return uniformModel.forward(p, c, step);
      },
    });
    const lengths = Array.from({ length: 40 }, (_, i) => (i % 7) + 1);
    const replies = lengths.map((maxTokens, i) => all(engine.generate({ tokens: prompt(i + 1), maxTokens })));
    expect((await Promise.all(replies)).map((reply) => reply.length)).toEqual(lengths);
    expect(Math.max(...widths)).toBe(4);
  });
});

describe("stats", () => {
  it("count steps, tokens and what each expert had; when all is over nothing is held", async () => {
    const engine = open();
    const reply = engine.generate({ tokens: prompt(20), maxTokens: 6, sampling: { temperature: 0 } });
    const running = [];
    for await (const _ of reply) running.push(engine.stats().running);
    expect(running[0]).toBe(1);
    await vi.waitFor(() => expect(engine.stats().running).toBe(0)); // the loop sees that nobody is left
    const { cache, experts, ...counts } = engine.stats();
    expect(counts).toMatchObject({ running: 0, waiting: 0, stepTokens: 25 });
    expect(cache.global).toEqual({ used: 0, total: 128 });
    expect(experts.map(({ layer }) => layer)).toEqual([1, 3]);
    for (const { tokens } of experts) expect(tokens.reduce((a, b) => a + b)).toBe(25 * config.topK);
  });
});
