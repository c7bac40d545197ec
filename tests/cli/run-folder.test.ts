// With which configs a run may go on.

import { describe, expect, it } from "vitest";
import { refuseOtherRun, type SavedState } from "../../src/cli/run-folder.ts";
import { readConfig } from "../../src/train/config.ts";

const least = {
  data: { a: "a.jsonl" },
  phases: [{ steps: 100, mix: { a: 1 } }],
  schedule: { warmup: 10, decay: 40 },
  optimizer: { average: 0.9 },
};
const read = (more: object) => readConfig({ ...least, ...more }, "c.json");
const at = (step: number, more: object): SavedState => ({
  progress: { step, tokens: 4096 * step, cursor: {}, biases: [[0.1, -0.1]] },
  ...{ seconds: 1, logBytes: 1, config: JSON.parse(JSON.stringify(read(more))) }, // as it lies on disk
});

describe("a run that goes on", () => {
  it.each([
    [{}, { batchTokens: 2048 }, "batchTokens was 4096 when the run began and is 2048; expected the same to resume"],
    [{}, { context: 256 }, "context was 512 when the run began and is 256"],
    [{}, { accumulate: 2 }, "accumulate was 1 when the run began and is 2"],
    [{}, { holdOut: 3 }, "holdOut was 0 when the run began and is 3"],
    [{}, { model: { depth: 5 } }, 'model was {"depth":4,'],
    [{ from: "here" }, { from: "there" }, 'from was "here" when the run began and is "there"'],
    [{ from: "here" }, { from: "here", lora: {} }, 'lora was absent when the run began and is {"rank":8'],
    [
      { from: "there", lora: { targets: ["wq"] } },
      { from: "there", lora: { targets: ["wq", "wv"] } },
      'lora was {"rank":8,"alpha":16,"targets":["wq"]} when the run began and is {"rank":8,"alpha":16,"targets":["wq","wv"]}',
    ],
  ])("keeps to what it began with, said in the config's words: from %j to %j", (before, now, message) => {
    expect(() => refuseOtherRun(at(50, before), read(before))).not.toThrow();
    expect(() => refuseOtherRun(at(50, before), read(now))).toThrow(message);
  });

  it.each([
    { phases: [{ steps: 200, mix: { b: 1 } }], data: { b: "b.jsonl" }, schedule: { kind: "cosine" } },
    { heldOut: { a: "a.jsonl" }, samples: "a.jsonl", evaluate: { every: 7 }, checkpoint: { keep: 7 }, recompute: true },
    {
      optimizer: { rate: 1, beta1: 0.8, beta2: 0.8, eps: 1e-7, decay: 1, clip: 2, visionRate: 0.5, average: 0.5 },
    },
    { balance: { strength: 1, z: 1 } },
    { balance: { by: "bias" } },
    { balance: { by: "none" } },
  ])("may change %j", (more) => {
    expect(() => refuseOtherRun(at(50, {}), read(more))).not.toThrow();
  });

  it("drops the biases that balanced its experts only once they have faded", () => {
    const biased = { balance: { by: "bias" } };
    for (const step of [50, 61, 80]) {
      expect(() => refuseOtherRun(at(step, biased), read({}))).toThrow(
        `balance.by was "bias" when the run began and is "loss"; expected the same to resume, since the biases of step ${step} have not faded`,
      );
      expect(() => refuseOtherRun(at(step, biased), read(biased))).not.toThrow();
    }
    for (const step of [81, 100]) expect(() => refuseOtherRun(at(step, biased), read({}))).not.toThrow();
    const dense = at(50, biased);
    expect(() => refuseOtherRun({ ...dense, progress: { ...dense.progress, biases: [] } }, read({}))).not.toThrow();
  });
});
