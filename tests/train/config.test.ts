import { describe, expect, it } from "vitest";
import { countParameters } from "../../src/model/config.ts";
import { RequestError } from "../../src/tensor/errors.ts";
import { modelConfig, readConfig, sizesOfDepth } from "../../src/train/config.ts";
import { phaseAt } from "../../src/train/trainer.ts";

const least = { data: { a: "a.jsonl" }, phases: [{ steps: 10, mix: { a: 1 } }] };
const read = (more: object) => readConfig({ ...least, ...more }, "c.json");

describe("a depth", () => {
  it.each([1, 2, 4, 5, 6, 7, 8, 9, 12, 16, 24])("of %d gives a whole Llama 4 that fits together", (depth) => {
    const sizes = read({ model: { depth, vision: {} } }).model!;
    expect({ ...sizes, vision: undefined }).toEqual({ ...sizesOfDepth(depth), vision: undefined });
    const c = modelConfig(sizes, { vocabSize: 4096, context: 512, tileSize: 48 }, { eos: [] });
    expect(c.layers.length).toBe(depth);
    expect(c.nHeads % c.nKvHeads).toBe(0);
    expect(c.headDim % 4).toBe(0);
    expect(c.layers.every((layer) => layer.moe)).toBe(true);
    expect(c.layers.filter((layer) => !layer.rope).length).toBe(Math.floor(depth / 4));
    expect(c.attentionChunk).toBeLessThan(512);
    expect((c.vision!.imageSize / c.vision!.patchSize) % c.vision!.shuffle).toBe(0);
    expect(c.vision!.dim % c.vision!.nHeads).toBe(0);
  });

  it("has heads that share keys evenly", () => {
    const sizes = [4, 5, 6, 7, 8, 9, 12, 16].map((depth) => sizesOfDepth(depth));
    const keys = sizes.map(({ heads, kvHeads }) => `${heads} to ${kvHeads}`);
    expect(keys).toEqual(["4 to 1", "5 to 1", "6 to 2", "7 to 1", "8 to 2", "9 to 3", "12 to 3", "16 to 4"]);
    expect(read({ model: { depth: 4, dim: 192 } }).model).toMatchObject({ heads: 6, kvHeads: 2, expertFfn: 384 });
    expect(read({ model: { depth: 4, heads: 12 } }).model).toMatchObject({ dim: 128, kvHeads: 3, ffn: 512 });
  });

  it("says how many tiles an image becomes at inference: those of the data, else those of the published models", () => {
    const tilesOf = (vision: object) =>
      modelConfig(read({ model: { vision } }).model!, { vocabSize: 4096, context: 512, tileSize: 48 }, { eos: [] })
        .vision!.preprocessing.maxTiles;
    expect([tilesOf({}), tilesOf({ tiles: 1 })]).toEqual([16, 1]);
    expect(() => tilesOf({ tiles: 65 })).toThrow("model.vision.tiles is 65; expected at most 64");
  });

  it("refuses tiles that do not fall into patches, by their sizes", () => {
    const seeing = (tileSize: number, patch?: number) =>
      modelConfig(
        read({ model: { vision: { patch } } }).model!,
        { vocabSize: 4096, context: 512, tileSize },
        { eos: [] },
      );
    expect(() => seeing(100)).toThrow(
      new RequestError("tiles of 100 pixels and patches of 8 × 2; expected a multiple: set model.vision.patch"),
    );
    expect(() => seeing(24)).toThrow("tiles of 24 pixels and patches of 8 × 2"); // three patches, which two do not divide
    expect(seeing(100, 10).vision).toMatchObject({ imageSize: 100, patchSize: 10 });
  });

  it("grows the model and lowers the rate", () => {
    const sizes = [4, 8, 16].map((depth) => {
      const c = modelConfig(
        read({ model: { depth } }).model!,
        { vocabSize: 4096, context: 512, tileSize: undefined },
        { eos: [] },
      );
      const { total, active } = countParameters(c);
      const tables = 2 * c.vocabSize * c.dim;
      return [total - tables, active - tables];
    });
    expect(sizes).toEqual([
      [3_708_032, 955_520],
      [29_643_008, 7_622_912],
      [237_060_608, 60_899_840],
    ]);
    expect(read({ model: { depth: 16 } }).rate).toBeLessThan(read({ model: { depth: 4 } }).rate);
  });
});

describe("a config", () => {
  it("has a default for all but data and phases", () => {
    const config = read({});
    expect(config).toMatchObject({ context: 512, rows: 4096, accumulate: 1, tokenizer: 4096, out: "run" });
    expect(config.model).toEqual({ ...sizesOfDepth(4), vision: undefined });
    expect(config.schedule).toMatchObject({ kind: "wsd", steps: 10 });
  });

  it("balances a new model's experts by a loss, and those of one that is there not at all", () => {
    expect(read({}).balance).toEqual({ by: "loss", strength: 0.02, z: 1e-4 });
    expect(read({ balance: { by: "bias" } }).balance).toEqual({ by: "bias", strength: 0.001, z: 1e-4 });
    expect(read({ from: "there" }).balance).toMatchObject({ by: "none", z: 0 });
  });

  it.each([
    [{ phases: [] }, /phases is empty/],
    [{ data: {} }, /data names no file/],
    [{ phases: undefined }, /phases is missing; expected a list/],
    [{ phases: [{ steps: 1, mix: { b: 1 } }] }, /phases\[0\].mix names "b"; expected one of a/],
    [{ phases: [{ steps: 0, mix: { a: 1 } }] }, /phases\[0\]: steps is 0; expected a whole number from 1/],
    [{ phases: [{ steps: 1, mix: { a: -1 } }] }, /mix is {"a":-1}; expected names and their shares/],
    [{ optimizer: { kind: "sgd" } }, /optimizer: kind is "sgd"; expected one of adamw, muon/],
    [{ optimizer: { lr: 1 } }, /optimizer: "lr" is not known here; expected .*rate/],
    [{ model: { heads: 6, kvHeads: 4 } }, /6 heads cannot share 4 kvHeads/],
    [{ model: { headDim: 7 } }, /headDim is 7/],
    [{ model: { experts: 2, topK: 3 } }, /topK is 3 of 2/],
    [{ model: { vision: { dim: 30, heads: 5 } } }, /heads of 6; expected a multiple of 4/],
    [{ context: 9000 }, /context is 9000 and batchTokens 4096/],
    [{ schedule: { final: 2 } }, /final is 2; expected a number from 0 to 1/],
    [{ schedule: { warmup: 6, decay: 5 } }, /6 steps of warmup and 5 of decay in 10; expected no more/],
    [{ schedule: { kind: "cosine", warmup: 11 } }, /11 steps of warmup in 10; expected no more/],
    [{ from: "there", tokenizer: 4096 }, /tokenizer is 4096 beside from; expected a tokenizer.json or none/],
    [{ schedule: { kind: "cosine", decay: 5 } }, /schedule: decay with kind cosine.*; expected kind wsd, or no decay/],
    [
      { teacher: { model: "there", share: { kind: "constant", last: 0.5 } } },
      /teacher: share: last with kind constant.*; expected kind linear or cosine, or no last/,
    ],
    [{ balance: { by: "none", strength: 1 } }, /balance: strength with by none.*; expected by loss or bias/],
    [{ optimizer: { beta1: 1 } }, /beta1 is 1; expected a number from 0 that is below 1/],
    [{ optimizer: { beta2: 1 } }, /beta2 is 1; expected a number from 0 that is below 1/],
    [{ optimizer: { average: 1 } }, /average is 1; expected a number from 0 that is below 1/],
    [{ holdOut: 1 }, /holdOut is 1, which leaves nothing to learn from/],
  ])("refuses %j", (more, message) => {
    expect(() => read(more)).toThrow(message as RegExp);
    expect(() => read(more)).toThrow(expect.objectContaining({ name: "RequestError" }));
  });

  it.each([
    { from: "there", tokenizer: "own/tokenizer.json" },
    { tokenizer: 4096, teacher: { model: "there", share: { kind: "constant", first: 0.5 } } },
    { schedule: { kind: "cosine", warmup: 2 } },
    { schedule: { kind: "wsd", decay: 5 } },
    { optimizer: { beta1: 0, beta2: 0.999, average: 0 } },
  ])("takes %j", (more) => {
    expect(read(more)).toMatchObject(more);
  });

  it.each([1, 2, 3, 10, 4000])("has a schedule that fits a run of %d steps", (steps) => {
    const { schedule } = read({ phases: [{ steps, mix: { a: 1 } }] });
    expect(schedule.warmup + schedule.decay).toBeLessThanOrEqual(steps);
    expect(read({ phases: [{ steps, mix: { a: 1 } }], schedule: { warmup: steps } }).schedule.decay).toBe(0);
  });

  it("knows the phase of a step", () => {
    const config = read({
      phases: [
        { steps: 3, mix: { a: 1 } },
        { steps: 2, mix: { a: 1 }, loss: "answers" },
      ],
    });
    expect([0, 2, 3, 4, 5].map((step) => phaseAt(config, step)).map(({ index, first }) => [index, first])).toEqual([
      [0, true],
      [0, false],
      [1, true],
      [1, false],
      [1, false],
    ]);
  });
});
