// The encoder and the logits of prompts with images = the published implementation's (tests/golden/vision, made by
// scripts/golden/vision.py): part by part, then end to end with 0, 1, 2 and 5 images.

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openNative } from "../../src/backends/native/backend.ts";
import { openReference } from "../../src/backends/reference/reference.ts";
import { openCheckpoint } from "../../src/checkpoint/open.ts";
import { type Llama4Config, tokensPerTile } from "../../src/model/config.ts";
import { mapParameters, mapVision, type Parameters, type VisionParameters } from "../../src/model/parameters.ts";
import { forward, type Step } from "../../src/model/transformer.ts";
import { encodeImage } from "../../src/model/vision.ts";
import type { Backend } from "../../src/tensor/backend.ts";
import type { Tensor, TensorView } from "../../src/tensor/tensor.ts";
import { haveAddon } from "../addon.ts";

const root = join(import.meta.dirname, "../golden/vision");
const names = readdirSync(root).filter((name) => existsSync(join(root, name, "expected.json")));

const PATCH = 63; // of the script; a Meta folder says nothing of its tokens
const TOLERANCE = 2e-4; // the specification's; both sides round, in different orders

interface Case {
  readonly images: readonly (readonly [number, number])[];
  readonly tiles: number;
  readonly input_ids: number[];
  readonly wanted: number[];
  readonly logits: number[][];
  /** Before the first block, after each, of the adapter, of the projector. */
  readonly parts?: number[][][];
}

const backends = {
  reference: () => openReference(),
  ...(haveAddon && { native: () => openNative({ activations: "f32", threads: 2 }) }),
};

/** The formula of scripts/golden/vision.py: bytes of a linear congruential generator as [−1, 1]. */
function pixels(seed: number, n: number): Float32Array {
  let x = seed;
  return Float32Array.from({ length: n }, () => {
    x = (Math.imul(1664525, x) + 1013904223) >>> 0;
    return (x >>> 24) / 127.5 - 1;
  });
}

function worst(got: ArrayLike<number>, expected: readonly number[]): number {
  if (got.length !== expected.length) throw new Error(`${got.length} numbers; expected ${expected.length}`);
  return expected.reduce((most, x, i) => Math.max(most, Math.abs(x - got[i]!)), 0);
}

interface Model {
  readonly c: Llama4Config;
  readonly p: Parameters;
  readonly vision: VisionParameters;
}

async function opened(backend: Backend, folder: string): Promise<Model> {
  const checkpoint = await openCheckpoint(folder);
  const views: TensorView[] = [];
  mapParameters(checkpoint.parameters, (view) => views.push(view));
  mapVision(checkpoint.vision!, (view) => views.push(view));
  const tensors = await backend.load(views);
  await checkpoint.close();
  let next = 0;
  const take = () => tensors[next++]!;
  return {
    c: checkpoint.config,
    p: mapParameters(checkpoint.parameters, take),
    vision: mapVision(checkpoint.vision!, take),
  };
}

function tilesOf(backend: Backend, { c: { vision: v } }: Model, { images, tiles }: Case): Tensor {
  const [C, S] = [v!.nChannels, v!.imageSize];
  return backend.from(pixels(1000 + images.length, tiles * C * S * S), [tiles, C, S, S]);
}

async function stepOf(backend: Backend, model: Model, one: Case): Promise<Step> {
  const tokens = Int32Array.from(one.input_ids);
  return {
    tokens,
    segments: [{ row: 0, length: tokens.length, position: 0, sequence: 0 }],
    wanted: Int32Array.from(one.wanted),
    ...(one.tiles > 0 && {
      images: {
        rows: await encodeImage(model.vision, model.c, tilesOf(backend, model, one)),
        at: Int32Array.from(tokens.keys()).filter((row) => tokens[row] === PATCH),
      },
    }),
  };
}

const report: Record<string, Record<string, string>> = {};
afterAll(() => console.table(report));

describe.each(Object.keys(backends) as (keyof typeof backends)[])("%s", (backendName) => {
  const backend = backends[backendName]!();
  afterAll(() => backend.close());
  const note = (what: string, error: number) => {
    report[what] = { ...report[what], [backendName]: error.toExponential(2) };
    expect(error).toBeLessThan(TOLERANCE);
  };

  describe.each(names)("%s", (name) => {
    const { cases }: { cases: Case[] } = JSON.parse(readFileSync(join(root, name, "expected.json"), "utf8"));
    let model: Model;
    beforeAll(async () => {
      model = await opened(backend, join(root, name));
    });

    for (const one of cases) {
      it(`${one.images.length} images in the prompt give the published logits`, async () => {
        const logits = await backend.read(await forward(model.p, model.c, await stepOf(backend, model, one)));
        note(`${name}, ${one.images.length} images`, worst(logits, one.logits.flat()));
      });

      if (one.parts)
        it("each part of the encoder gives the published numbers", async () => {
          const parts = one.parts!.map((rows) => rows.flat());
          const features = await encodeImage(model.vision, model.c, tilesOf(backend, model, one), async (layer, h) =>
            note(`${name}, encoder part ${layer}`, worst(await backend.read(h), parts[layer]!)),
          );
          note(`${name}, features`, worst(await backend.read(features), parts.at(-1)!));
        });
    }

    it.runIf(cases.length > 2)("two requests with different images in one step equal each alone", async () => {
      const [a, b] = [await stepOf(backend, model, cases[1]!), await stepOf(backend, model, cases[2]!)];
      const T = a.tokens.length;
      const perTile = tokensPerTile(model.c.vision!);
      const tiles = await Promise.all([cases[1]!, cases[2]!].map((one) => backend.read(tilesOf(backend, model, one))));
      const [C, S] = [model.c.vision!.nChannels, model.c.vision!.imageSize];
      const N = cases[1]!.tiles + cases[2]!.tiles;
      const together = backend.from(Float32Array.from([...tiles[0]!, ...tiles[1]!]), [N, C, S, S]);
      const rows = await encodeImage(model.vision, model.c, together);
      expect(rows.shape).toEqual([N * perTile, model.c.dim]);
      const both = await forward(model.p, model.c, {
        tokens: Int32Array.from([...a.tokens, ...b.tokens]),
        segments: [a.segments[0]!, { row: T, length: b.tokens.length, position: 0, sequence: 1 }],
        wanted: Int32Array.from([...a.wanted, ...b.wanted.map((row) => T + row)]),
        images: { rows, at: Int32Array.from([...a.images!.at, ...b.images!.at.map((row) => T + row)]) },
      });
      const alone = [a, b].map(async (step) => [...(await backend.read(await forward(model.p, model.c, step)))]);
      expect(worst(await backend.read(both), (await Promise.all(alone)).flat())).toBeLessThan(1e-5);
    });

    it("tiles of another size are refused", async () => {
      const tiles = backend.from(new Float32Array(12), [1, 3, 2, 2]);
      await expect(encodeImage(model.vision, model.c, tiles)).rejects.toThrow(/tiles are \[1, 3, 2, 2\]; expected/);
    });
  });
});
