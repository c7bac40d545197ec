import { describe, expect, it } from "vitest";
import { openNative } from "../../src/backends/native/backend.ts";
import { openReference } from "../../src/backends/reference/reference.ts";
import { tokensPerTile } from "../../src/model/config.ts";
import { route } from "../../src/tensor/ops.ts";
import type { Tensor } from "../../src/tensor/tensor.ts";
import { continued, type Prompt } from "../../src/train/continuation.ts";
import { logitsOf } from "../../src/train/logits.ts";
import { haveAddon } from "../addon.ts";
import { integers, numbers } from "../backends/drawn.ts";
import { config, weights } from "./small-model.ts";

const { vocabSize: V, vision } = config;
const n = (shape: readonly number[]) => shape.reduce((x, y) => x * y, 1);
const backends = { reference: () => openReference(), ...(haveAddon && { native: () => openNative({ threads: 1 }) }) };

const image = (at: number, seed: number) => ({
  pixels: Uint8Array.from(integers(3 * vision!.imageSize ** 2, 256, seed)),
  tiles: 1,
  at: Int32Array.from({ length: tokensPerTile(vision!) }, (_, i) => at + i),
});
// chunks of 4 tokens: prompts that end in one, at its end, behind several; images in one chunk and across two
const prompts: Prompt[] = [
  { tokens: integers(1, V, 1) },
  { tokens: integers(4, V, 2) },
  { tokens: integers(11, V, 3), images: image(1, 4) },
  { tokens: integers(9, V, 5), images: image(2, 6) },
  { tokens: integers(15, V, 7) },
];

describe.each(Object.entries(backends))("continuations on %s", (_, openBackend) => {
  const b = openBackend();
  let seed = 10;
  const p = weights(config, (shape): Tensor => b.from(Float32Array.from(numbers(n(shape), seed++)), shape));

  /** Everything computed anew for each token. */
  async function anew({ tokens, images }: Prompt, { most, context, stop, choose }: Parameters<typeof continued>[4]) {
    const said: number[] = [];
    while (said.length < most && tokens.length + said.length < context) {
      const all = Int32Array.from([...tokens, ...said]);
      const batch = {
        ...{ tokens: all, segments: [{ row: 0, length: all.length, position: 0, sequence: 0 }] },
        ...{ wanted: Int32Array.of(all.length - 1), targets: new Int32Array(1), ...(images && { images }) },
      };
      const logits = [...(await b.read(await logitsOf(b, p, config, batch, choose)))];
      const next = logits.indexOf(Math.max(...logits));
      if (stop.has(next)) break;
      said.push(next);
    }
    return said;
  }

  it.each([
    ["as far as they may go", { most: 12, context: 18, stop: new Set<number>() }],
    ["up to what ends them", { most: 12, context: 64, stop: new Set([3, 8]) }],
    [
      "with experts that another chooses",
      {
        ...{ most: 6, context: 64, stop: new Set<number>() },
        choose: (layer: number, logits: Tensor) =>
          route(b.mul(logits, b.from(Float32Array.of(layer % 2 ? 1 : -1), [1, 1])), 1),
      },
    ],
  ])("are, %s, what computing all anew for each token gives", async (_, options) => {
    const expected = [];
    for (const prompt of prompts) expected.push(await anew(prompt, options));
    expect(await continued(b, p, config, prompts, options)).toEqual(expected);
    expect(new Set(expected.flat()).size).toBeGreaterThan(2); // it does say something
  });
});
