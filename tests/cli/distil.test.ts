// Distillation on the command line: a teacher alongside or its answers stored, a run that is resumed, what is refused.

import {
  cpSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { llama4, objectOf } from "./llama4.ts";

const place = mkdtempSync(join(tmpdir(), "llama4-distil-"));
const at = (name: string) => join(place, name);
const steps = 6;
const common = {
  data: { docs: "docs.jsonl" },
  phases: [{ steps, mix: { docs: 1 } }],
  ...{ context: 40, batchTokens: 64, accumulate: 2 },
  evaluate: { every: steps, tokens: 40 },
  checkpoint: { minutes: 0, keep: steps },
  seed: 3,
};
const sizes = { depth: 4, dim: 16, heads: 2, kvHeads: 1, headDim: 8, experts: 3, expertFfn: 12, chunk: 16, moeStep: 2 };
const student = {
  ...common,
  model: { ...sizes, dim: 8, heads: 1 },
  optimizer: { rate: 0.01 },
  teacher: { model: "teacher/model", topK: 5 },
};
const stored = { ...student, teacher: { ...student.teacher, store: "said.soft" } };

const write = (name: string, value: object) => {
  writeFileSync(at(name), JSON.stringify(value));
  return at(name);
};
const run = (command: string, config: string, out: string, ...more: string[]) =>
  llama4([command, "--backend", "reference", "--json", "--config", at(config), "--out", at(out), ...more]);
interface Step {
  readonly loss: number;
  readonly taught: { readonly divergence: number; readonly share: number };
}
const stepsOf = (out: string): Step[] =>
  readFileSync(join(at(out), "log.jsonl"), "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line))
    .flatMap(({ type, loss, taught }) => (type === "step" ? [{ loss, taught }] : []));
const weightsOf = (out: string) => readFileSync(join(at(out), "model", "model.safetensors"));

beforeAll(async () => {
  const words = ["the cat sees the dog", "the dog sees an ant", "an ant and a cat", "the cat and the dog", "a dog"];
  const documents = words.flatMap((text, i) => words.slice(i).map((more) => ({ text: `${text}. ${more}.` })));
  writeFileSync(at("docs.jsonl"), documents.map((document) => `${JSON.stringify(document)}\n`).join(""));
  write("teacher.json", { ...common, model: sizes, tokenizer: 290, optimizer: { rate: 0.01 } });
  objectOf(await run("train", "teacher.json", "teacher"));
  write("student.json", student);
  write("stored.json", stored);
}, 600_000);

afterAll(() => rmSync(place, { recursive: true }));

describe("llama4 distil", () => {
  it("learns from a teacher with its vocabulary, whose share falls", async () => {
    const ended = await run("distil", "student.json", "alongside");
    const answer = objectOf(ended);
    expect(answer).toMatchObject({ out: join(at("alongside"), "model"), steps });
    const taught = stepsOf("alongside").map((step) => step.taught);
    expect(taught.map(({ share }) => share)).toEqual(
      Array.from({ length: steps }, (_, i) => expect.closeTo(0.9 - (0.4 * i) / (steps - 1), 9)),
    );
    expect(taught.at(-1)!.divergence).toBeLessThan(taught[0]!.divergence);
    expect(readFileSync(join(at("alongside"), "report.html"), "utf8")).toContain("<b>Teacher</b>");
    expect(ended.stderr).toMatch(
      /step 1\/6, loss [\d.]+ \(mean [\d.]+\), [\d.]+ from the teacher \(90 % of the loss\)/,
    );
    const tokenizer = (folder: string) => readFileSync(join(at(folder), "model", "tokenizer.json"), "utf8");
    expect(tokenizer("alongside")).toBe(tokenizer("teacher"));
  });

  it("stores what the teacher says once, and gives the same run with it, to the bit", async () => {
    const first = objectOf(await run("distil", "stored.json", "stored"))["teacher"] as Record<string, number>;
    expect(weightsOf("stored").equals(weightsOf("alongside"))).toBe(true);
    expect(first["reused"]).toBeGreaterThan(0); // documents that came again
    const { size } = statSync(at("said.soft"));
    const again = objectOf(await run("distil", "stored.json", "again"))["teacher"] as Record<string, number>;
    expect(again).toEqual({ asked: 0, reused: first["asked"]! + first["reused"]! });
    expect(statSync(at("said.soft")).size).toBe(size);
    expect(weightsOf("again").equals(weightsOf("alongside"))).toBe(true);
  });

  it("resumed, its store cut in the middle of an answer, ends the same", async () => {
    cpSync(at("stored"), at("resumed"), { recursive: true });
    for (const name of readdirSync(join(at("resumed"), "checkpoints"))
      .sort()
      .slice(2))
      rmSync(join(at("resumed"), "checkpoints", name), { recursive: true });
    truncateSync(at("said.soft"), Math.floor(statSync(at("said.soft")).size / 2));
    const ended = await run("distil", "stored.json", "resumed", "--resume");
    expect(objectOf(ended)).toMatchObject({ steps });
    expect(ended.stderr).toMatch(/said.soft: \d+ bytes at its end are no whole answer and are cut off/);
    expect(stepsOf("resumed")).toEqual(stepsOf("stored"));
    expect(weightsOf("resumed").equals(weightsOf("alongside"))).toBe(true);
  });

  it("refuses a config without a teacher, one for train, another vocabulary and another teacher's store", async () => {
    const failing = async (command: string, config: string) => {
      const ended = await run(command, config, "none");
      expect(ended.status).toBe(2);
      return (objectOf(ended)["error"] as { message: string }).message;
    };
    expect(await failing("distil", "teacher.json")).toMatch(/has no teacher; expected "teacher": {"model": …}/);
    expect(await failing("train", "student.json")).toMatch(/has a teacher; llama4 distil --config .* learns from it/);
    write("vocabulary.json", { ...student, tokenizer: 300 });
    expect(await failing("distil", "vocabulary.json")).toMatch(/has 290 tokens and the student 300; expected the same/);
    rmSync(at("none"), { recursive: true });
    write("other.json", { ...stored, teacher: { ...stored.teacher, model: "alongside/model" } });
    expect(await failing("distil", "other.json")).toMatch(/said.soft holds what another teacher said/);
    expect(existsSync(at("none"))).toBe(false); // nothing was begun
    write("key.json", { ...student, teacher: { ...student.teacher, temperature: 2 } });
    expect(await failing("distil", "key.json")).toMatch(/teacher: "temperature" is not known here/);
  });
});
