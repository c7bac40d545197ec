// What a request is told of its experts is what one pass over prompt and reply decides, whoever else is in the batch.

import { expect, it } from "vitest";
import { Engine } from "../../src/engine/engine.ts";
import type { Generated } from "../../src/engine/requests.ts";
import type { TokenRoutes } from "../../src/engine/route-trace.ts";
import { forward, type Step } from "../../src/model/transformer.ts";
import { backend, config, open, parameters, prompt, randomParameters } from "./random-model.ts";

async function all(pieces: AsyncIterable<Generated>): Promise<Generated[]> {
  const list: Generated[] = [];
  for await (const piece of pieces) list.push(piece);
  return list;
}

/** By layer, then by position: the router's logits `[T][E]` of one pass without a cache. */
async function routerLogits(tokens: readonly number[]): Promise<Map<number, number[][]>> {
  const heard = new Map<number, number[][]>();
  const step: Step = {
    tokens: Int32Array.from(tokens),
    segments: [{ row: 0, length: tokens.length, position: 0, sequence: 0 }],
    wanted: Int32Array.of(tokens.length - 1),
    routed: async (layer, _, logits) => {
      const read = [...(await backend.read(logits))];
      heard.set(
        layer,
        Array.from(tokens, (_, t) => read.slice(t * config.nExperts, (t + 1) * config.nExperts)),
      );
    },
  };
  await backend.read(await forward(parameters, config, step));
  return heard;
}

const greedy = { temperature: 0 };
const routed = { sampling: greedy, routes: true, maxTokens: 20 };

it.each([
  ["after a whole prompt", { stepTokens: 512 }],
  ["after a prompt in slices", { stepTokens: 3 }],
  ["guessing ahead", { speculation: "lookup" as const }],
])("each token comes with the experts of the pass that gave it: %s", async (_, options) => {
  const text = [...prompt(9), ...prompt(9)];
  const reply = await all(open(options).generate({ tokens: text, ...routed }));
  const logits = await routerLogits([...text, ...reply.map(({ token }) => token)]);
  const expected = reply.map((_, i): TokenRoutes => {
    const at = text.length - 1 + i;
    const rows = [...logits.values()].map((of) => of[at]!);
    const ranked = rows.map((row) => row.map((logit, expert) => ({ logit, expert })).sort((a, b) => b.logit - a.logit));
    return {
      layers: [...logits.keys()],
      experts: ranked.map(([best]) => [best!.expert]),
      scores: ranked.map(([best]) => [1 / (1 + Math.exp(-best!.logit))]),
      margins: ranked.map(([best, next]) => best!.logit - next!.logit),
    };
  });
  expect(reply.map(({ routes }) => routes)).toEqual(expected);
  expect(expected[0]!.layers).toEqual([1, 3]);
});

it("among others that do not ask, and these are told nothing", async () => {
  const engine = open();
  const ask = (seed: number, routes: boolean) => all(engine.generate({ ...routed, tokens: prompt(7, seed), routes }));
  const alone = await all(open().generate({ ...routed, tokens: prompt(7, 2) }));
  const [first, second, third] = await Promise.all([ask(1, false), ask(2, true), ask(3, false)]);
  expect(second!.map(({ routes }) => routes)).toEqual(alone.map(({ routes }) => routes));
  expect([...first!, ...third!].filter((piece) => "routes" in piece)).toEqual([]);
});

it("there is no margin where every expert is chosen", async () => {
  const every = { ...config, topK: config.nExperts };
  const engine = new Engine({ backend, parameters: randomParameters(every), config: every, context: 64 });
  const [piece] = await all(engine.generate({ ...routed, tokens: prompt(4), maxTokens: 1 }));
  expect(piece!.routes!.margins).toEqual([null, null]);
  expect(piece!.routes!.experts.map((of) => [...of].sort())).toEqual([
    [0, 1, 2],
    [0, 1, 2],
  ]);
  await engine.close();
});
