// Runs of `llama4 train` as a person starts them: whole, killed, resumed, and with what goes wrong.

import { spawn, spawnSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { tilesHeader } from "../../src/train/documents.ts";
import { haveAddon } from "../addon.ts";
import { integers } from "../backends/drawn.ts";
import { random } from "../prompt/corpus.ts";
import { llama4, main, objectOf } from "./llama4.ts";

const side = 4;
const steps = 10;
const place = mkdtempSync(join(tmpdir(), "llama4-train-"));
const at = (name: string) => join(place, name);
const config = {
  model: {
    depth: 4,
    dim: 16,
    heads: 2,
    kvHeads: 1,
    headDim: 8,
    experts: 3,
    expertFfn: 12,
    chunk: 16,
    moeStep: 2,
    vision: { dim: 8, layers: 1, heads: 2, patch: 1 },
  },
  tokenizer: 300,
  data: { docs: "docs.jsonl" },
  heldOut: { docs: "docs.jsonl" },
  samples: "samples.jsonl",
  phases: [
    { steps: 6, mix: { docs: 1 }, loss: "text" },
    { steps: 4, mix: { docs: 1 }, loss: "answers" },
  ],
  ...{ context: 40, batchTokens: 48, accumulate: 2 },
  optimizer: { average: 0.9, rate: 0.005 },
  balance: { by: "bias" }, // which a checkpoint has to keep
  evaluate: { every: 5, tokens: 40 },
  checkpoint: { minutes: 0, keep: 2 }, // at every step
  seed: 3,
};

function write(name: string, value: object | readonly object[]): string {
  const text = Array.isArray(value)
    ? value.map((record) => `${JSON.stringify(record)}\n`).join("")
    : JSON.stringify(value);
  writeFileSync(at(name), text);
  return at(name);
}

const train = (...args: string[]) => llama4(["train", "--backend", "reference", "--json", ...args]);

/** The log without what a clock says. */
const logOf = (out: string) =>
  readFileSync(join(out, "log.jsonl"), "utf8")
    .split("\n")
    .filter(Boolean)
    .map((line) => ({ ...JSON.parse(line), seconds: 0 }));

const weightsOf = (folder: string) => readFileSync(join(folder, "model.safetensors"));
const checkpointsOf = (out: string) => readdirSync(join(out, "checkpoints")).sort();

beforeAll(() => {
  const chat = (image: number) => ({
    messages: [
      { role: "user", content: [{ image }, "What?"] },
      { role: "assistant", content: ["a cat", "a dog", "an ant"][image] },
    ],
  });
  const texts = ["the cat sees the dog", "the dog sees an ant", "the cat and the dog and the ant"].map((text) => ({
    text,
  }));
  write("docs.jsonl", [...texts, chat(0), chat(1), chat(2)]);
  write("samples.jsonl", [{ text: "the cat" }]);
  const pixels = integers(3 * 3 * side ** 2, 256, 5);
  writeFileSync(at("docs.tiles"), Buffer.concat([tilesHeader(side), Uint8Array.from(pixels)]));
  write("config.json", config);
});

afterAll(() => rmSync(place, { recursive: true }));

let wholeMs = 0; // of a run that nobody disturbs

describe("llama4 train", () => {
  it("makes a model that the other commands run, with a log and a report", async () => {
    const out = at("whole");
    const start = performance.now();
    const answer = objectOf(await train("--config", at("config.json"), "--out", out));
    wholeMs = performance.now() - start;
    expect(answer).toMatchObject({ out: join(out, "model"), steps });
    expect(checkpointsOf(out)).toEqual(["step-00000009", "step-00000010"]);
    const log = logOf(out);
    expect(log.filter(({ type }) => type === "step").map(({ step, phase }) => [step, phase])).toEqual(
      Array.from({ length: steps }, (_, i) => [i + 1, i < 6 ? 0 : 1]),
    );
    const losses = log.filter(({ type }) => type === "step").map(({ loss }) => loss);
    expect(losses.at(-1)).toBeLessThan(losses[0] - 1);
    for (const folder of [join(out, "model"), join(out, "checkpoints", "step-00000010")]) {
      const said = objectOf(
        await llama4([
          "generate",
          "--backend",
          "reference",
          "--model",
          folder,
          "--prompt",
          "the",
          "--raw",
          "--bos",
          "--max-tokens",
          "3",
          "--json",
        ]),
      );
      expect(said["promptTokens"]).toBeGreaterThan(1);
    }
    const page = readFileSync(join(out, "report.html"), "utf8");
    for (const word of ["Learning rate", "Held out", "What it says", "<svg"]) expect(page).toContain(word);
    expect(page).not.toMatch(/(src|href)="https?:/);
  });

  it("killed at 20 random moments and resumed gives the same losses and the same weights, to the bit", async () => {
    const out = at("killed");
    const draw = random(11);
    for (let kills = 0; ; ) {
      const resume = existsSync(join(out, "log.jsonl")) ? ["--resume"] : [];
      const args = ["train", "--backend", "reference", "--config", at("config.json"), "--out", out, ...resume];
      const child = spawn(process.execPath, [main, ...args], { stdio: ["ignore", "ignore", "pipe"] });
      let said = "";
      child.stderr.on("data", (bytes) => {
        said += bytes;
      });
      const isSpared = kills === 20;
      const timer = isSpared ? undefined : setTimeout(() => child.kill("SIGKILL"), wholeMs * draw());
      const code = await new Promise<number | null>((resolve) => child.on("exit", resolve));
      clearTimeout(timer);
      if (code === 0) {
        if (isSpared) break;
        rmSync(out, { recursive: true }); // done before it was killed often enough: another run
        continue;
      }
      expect(code, said).toBe(null); // killed, not failed
      kills++;
      // So that more of them fit into a run of 10 steps, every third kill loses a checkpoint as well.
      const found = checkpointsSafely(out).filter((name) => !name.endsWith(".partial"));
      if (kills % 3 === 0 && found.length > 1) rmSync(join(out, "checkpoints", found.at(-1)!), { recursive: true });
    }
    expect(logOf(out)).toEqual(logOf(at("whole")));
    for (const folder of ["model", "checkpoints/step-00000010"])
      expect(weightsOf(join(out, folder)).equals(weightsOf(join(at("whole"), folder)))).toBe(true);
    const moments = (run: string) =>
      readFileSync(join(at(run), "checkpoints/step-00000010/training/moments.safetensors"));
    expect(moments("killed").equals(moments("whole"))).toBe(true);
    expect(leftIn(out)).toEqual(leftIn(at("whole")));
  }, 900_000); // some forty processes, one after the other

  it("killed while it writes, leaves what the next one removes, and only that", async () => {
    const out = at("drafts");
    cpSync(at("whole"), out, { recursive: true });
    const drafts = ["step-00000011.partial", "step-00000011.partial.0a1b2c3d.partial"].map((name) =>
      join(out, "checkpoints", name),
    );
    for (const name of ["model.0a1b2c3d.partial", "model.77.new.0a1b2c3d.partial", "model.77.new", "model.77.old"])
      drafts.push(join(out, name));
    for (const draft of drafts) {
      mkdirSync(draft);
      writeFileSync(join(draft, "config.json"), "{");
    }
    writeFileSync(join(out, "model.gguf"), "somebody's own");
    objectOf(await train("--config", at("config.json"), "--out", out, "--resume"));
    expect(leftIn(out)).toEqual([...leftIn(at("whole")), "model.gguf"].sort());
  });

  it("leaves a folder alone in which another process trains, but not after one that was killed", async () => {
    const out = at("claimed");
    cpSync(at("whole"), out, { recursive: true });
    const before = leftIn(out);
    const again = ["--config", at("config.json"), "--out", out, "--resume"];
    writeFileSync(join(out, "running"), `${process.ppid}`); // one that lives
    const refused = await train(...again);
    expect(refused.status).toBe(2);
    expect(objectOf(refused)["error"]).toMatchObject({
      message: expect.stringContaining(`process ${process.ppid} trains in`),
    });
    const dead = spawnSync(process.execPath, ["-e", "0"]).pid;
    writeFileSync(join(out, "running"), `${dead}`);
    objectOf(await train(...again));
    expect(leftIn(out)).toEqual(before);
  });

  it("says what is wrong, and what to do, before anything is trained", async () => {
    const failing = async (...args: string[]) => {
      const ended = await train(...args);
      expect(ended.status).toBe(2);
      return (objectOf(ended)["error"] as { message: string }).message;
    };
    expect(await failing()).toMatch(/expected --config F, or --depth N/);
    expect(await failing("--config", at("config.json"), "--out", at("whole"))).toMatch(/holds a run already.*--resume/);
    expect(await failing("--config", at("config.json"), "--out", at("none"), "--resume")).toMatch(/no run to resume/);
    const typo = write("typo.json", { ...config, phases: [{ steps: 1, mix: { dogs: 1 } }] });
    expect(await failing("--config", typo, "--out", at("typo"))).toMatch(
      /phases\[0\].mix names "dogs"; expected one of docs/,
    );
    const broken = write("broken.json", { ...config, data: { docs: "broken.jsonl" } });
    writeFileSync(at("broken.jsonl"), '{"text":"a b c"}\n{"te');
    // What failed before its first step is no run.
    for (const _ of [1, 2])
      expect(objectOf(await train("--config", broken, "--out", at("broken")))["error"]).toMatchObject({
        name: "TrainingError",
        message: expect.stringMatching(/broken.jsonl: line 2, at byte 17: no JSON/),
      });
    writeFileSync(at("picture.png"), Buffer.from([0x89, 0x50, 0x4e, 0x47, 0xff, 0xfe]));
    expect(await failing("--depth", "4", "--data", at("picture.png"), "--out", at("picture"))).toMatch(/no UTF-8 text/);
    expect(await failing("--depth", "4", "--data", place, "--out", at("picture"))).toMatch(/: no file; expected/);
    const key = write("key.json", { ...config, batchToken: 3 });
    expect(await failing("--config", key, "--out", at("key"))).toMatch(
      /"batchToken" is not known here; expected .*batchTokens/,
    );
    for (const [option, value] of [
      ["--steps", "3"],
      ["--data", at("docs.jsonl")],
    ] as const)
      expect(await failing("--config", at("config.json"), option, value, "--out", at("stray"))).toMatch(
        new RegExp(`${option} beside --config; expected it with --depth only`),
      );
    const rounded = [
      "--config",
      at("config.json"),
      "--out",
      at("rounded"),
      "--backend",
      "reference",
      "--compute",
      "bf16",
    ];
    expect(await failing(...rounded)).toMatch(/--compute bf16 with --backend reference/);
    expect(await failing("--config", at("config.json"), "--out", at("threads"), "--threads", "2")).toMatch(
      /--threads 2 with --backend reference/,
    );
    const other = write("other.json", { ...config, seed: 4 });
    expect(await failing("--config", other, "--out", at("whole"), "--resume")).toMatch(
      /seed was 3 when the run began and is 4/,
    );
    for (const [change, message] of [
      [
        { optimizer: { ...config.optimizer, kind: "muon" } },
        /optimizer.kind was "adamw" when the run began and is "muon"/,
      ],
      [{ optimizer: { ...config.optimizer, average: 0 } }, /optimizer.average was 0.9 when the run began and is 0/],
      [{ holdOut: 3 }, /holdOut was 0 when the run began and is 3/],
      [{ schedule: { warmup: 4, decay: 7 } }, /schedule: 4 steps of warmup and 7 of decay in 10; expected no more/],
    ] as const)
      expect(
        await failing("--config", write("changed.json", { ...config, ...change }), "--out", at("whole"), "--resume"),
      ).toMatch(message);
    const vocabulary = at("whole-vocabulary");
    cpSync(at("whole"), vocabulary, { recursive: true });
    const own = join(vocabulary, "tokenizer.json");
    const words = JSON.parse(readFileSync(own, "utf8"));
    words.model.merges.reverse();
    writeFileSync(own, JSON.stringify(words));
    expect(await failing("--config", at("config.json"), "--out", vocabulary, "--resume")).toMatch(
      /the tokenizer is not the one that the run began with/,
    );
  });

  it.skipIf(!haveAddon)(
    "holds documents out of a --depth run by itself, measures them, and says what the model can be asked",
    async () => {
      const texts = Array.from({ length: 120 }, (_, i) => ({ text: `document ${i} of the cat and the dog` }));
      const args = ["--data", write("many.jsonl", texts), "--depth", "1", "--steps", "2", "--out", at("depth")];
      const ended = await llama4(["train", ...args]);
      expect(ended.status).toBe(0);
      expect(ended.stdout).toMatch(
        /held out: documents \d.*\n.*it has seen no chat, and goes on with what you type: llama4 chat --model/,
      );
      const model = join(at("depth"), "model");
      const talked = await llama4(["chat", "--model", model, "--max-tokens", "4", "--json"], "the cat\n");
      expect(talked.stderr).toContain("has seen no chat: it goes on with what you type");
      const asked = [
        "generate",
        "--model",
        model,
        "--prompt",
        "the cat",
        "--max-tokens",
        "4",
        "--temperature",
        "0",
        "--json",
      ];
      const [said, plain] = [objectOf(await llama4(asked)), objectOf(await llama4([...asked, "--raw", "--bos"]))];
      expect(said["tokens"]).toEqual(plain["tokens"]);
      expect(JSON.parse(talked.stdout)["promptTokens"]).toBe(plain["promptTokens"]);
      const log = logOf(at("depth"));
      expect(log.filter(({ type }) => type === "samples").at(-1).samples.length).toBe(2); // of 120, every 50th
    },
  );

  it("stops at a bad line, where it learns and where it learns the vocabulary", async () => {
    const bad = at("bad");
    write("bad.jsonl", [{ text: "the cat" }]);
    writeFileSync(at("bad.jsonl"), `${JSON.stringify({ text: "the cat sees" })}\n{"text": "the c`);
    const badConfig = write("bad.json", {
      ...config,
      tokenizer: join(at("whole"), "tokenizer.json"),
      data: { docs: "bad.jsonl" },
      heldOut: {},
      model: { ...config.model, vision: undefined },
    });
    const ended = await train("--config", badConfig, "--out", bad);
    expect(ended.status).toBe(1);
    expect(objectOf(ended)["error"]).toMatchObject({
      name: "TrainingError",
      message: expect.stringMatching(/bad.jsonl: line 2, at byte 24: no JSON/),
    });
    const learning = write("bad-vocabulary.json", {
      ...config,
      data: { docs: "bad.jsonl" },
      heldOut: {},
      model: { ...config.model, vision: undefined },
    });
    expect(objectOf(await train("--config", learning, "--out", at("bad-vocabulary")))["error"]).toMatchObject({
      name: "TrainingError",
      message: expect.stringMatching(/bad.jsonl: line 2, at byte 24: no JSON/),
    });
  });

  it.each([
    ["loss that is no number", 1e25, /^(the (loss|gradient of .*) is .*|.* is not finite after) (at )?step 1\d;? .*/],
    ["weight that is not finite", 1e39, /^text\..* is not finite after step 10; lower the rate/],
  ])("stops at a %s; the last checkpoint stays good", async (_, rate, message) => {
    const wild = at(`wild-${rate}`);
    cpSync(at("whole"), wild, { recursive: true });
    rmSync(join(wild, "checkpoints/step-00000010"), { recursive: true });
    const good = "checkpoints/step-00000009";
    const longer = {
      ...config,
      phases: [config.phases[0], { ...config.phases[1], steps: 14 }],
      optimizer: { ...config.optimizer, rate },
    };
    const ended = await train("--config", write("wild.json", longer), "--out", wild, "--resume");
    expect(ended.status).toBe(1);
    expect(objectOf(ended)["error"]).toMatchObject({ name: "TrainingError", message: expect.stringMatching(message) });
    for (const file of ["model.safetensors", "config.json", "training/moments.safetensors", "training/state.json"])
      expect(readFileSync(join(wild, good, file)).equals(readFileSync(join(at("whole"), good, file)))).toBe(true);
    if (rate > 1e38) expect(checkpointsOf(wild)).toEqual(["step-00000009"]);
    expect(checkpointsOf(wild).every((name) => !name.includes("partial"))).toBe(true);
  });
});

describe("a run", () => {
  it("stopped by Ctrl-C keeps what it has, and goes on to be longer than first asked for", async () => {
    const out = at("stopped");
    const args = ["train", "--backend", "reference", "--config", at("config.json"), "--out", out];
    const child = spawn(process.execPath, [main, ...args], { stdio: ["ignore", "ignore", "pipe"] });
    child.stderr.once("data", () => child.kill("SIGINT")); // it has made a step
    expect(await new Promise((resolve) => child.on("exit", resolve))).toBe(130);
    const kept = checkpointsOf(out).at(-1)!;
    expect(existsSync(join(out, "checkpoints", kept, "training/state.json"))).toBe(true);
    expect(objectOf(await train("--config", at("config.json"), "--out", out, "--resume"))).toMatchObject({ steps });
    expect(weightsOf(join(out, "model")).equals(weightsOf(join(at("whole"), "model")))).toBe(true);
    const longer = write("longer.json", { ...config, phases: [...config.phases, { steps: 2, mix: { docs: 1 } }] });
    // Killed where its next checkpoint is there, it has no model that is older than that.
    const longest = write("longest.json", { ...config, phases: [...config.phases, { steps: 9000, mix: { docs: 1 } }] });
    const killed = at("extended");
    cpSync(out, killed, { recursive: true });
    const going = spawn(process.execPath, [
      ...[main, "train", "--backend", "reference", "--config", longest, "--out", killed, "--resume"],
    ]);
    while (checkpointsOf(killed).at(-1)! < "step-00000012") await new Promise((resolve) => setTimeout(resolve, 20));
    going.kill("SIGKILL");
    await new Promise((resolve) => going.on("exit", resolve));
    expect(existsSync(join(killed, "model"))).toBe(false);
    expect(objectOf(await train("--config", longer, "--out", out, "--resume"))).toMatchObject({ steps: steps + 2 });
    expect(weightsOf(join(out, "model")).equals(weightsOf(join(at("whole"), "model")))).toBe(false);
  });

  it.skipIf(!haveAddon).each(["f32", "bf16"])("keeps to %s when it goes on, unless told otherwise", async (compute) => {
    const native = (name: string, ...args: string[]) =>
      llama4(["train", "--threads", "1", "--json", "--config", at(name), "--out", at(`in-${compute}`), ...args]);
    for (const n of [1, 2, 3]) write(`steps-${n}.json`, { ...config, phases: [{ steps: n, mix: { docs: 1 } }] });
    const began = await native("steps-1.json", "--compute", compute);
    expect(objectOf(began)).toMatchObject({ compute });
    expect(began.stderr.split(`products take their factors in ${compute}\n`).length).toBe(2); // once
    const state = join(at(`in-${compute}`), "checkpoints/step-00000001/training/state.json");
    expect(JSON.parse(readFileSync(state, "utf8"))).toMatchObject({ compute });
    expect(objectOf(await native("steps-2.json", "--resume"))).toMatchObject({ compute });
    const other = compute === "f32" ? "bf16" : "f32";
    expect(objectOf(await native("steps-3.json", "--resume", "--compute", other))).toMatchObject({ compute: other });
  });

  // Gradients do not depend on how threads share the work (tests/train/native.test.ts), so exact is what to expect.
  it.skipIf(!haveAddon).each(["f32", "bf16"])(
    "in %s on two threads, resumed, is the same to the bit",
    async (compute) => {
      const [out, again] = [at(`native-${compute}`), at(`native-${compute}-resumed`)];
      const phases = [{ steps: 6, mix: { docs: 1 } }];
      const file = write(`native-${compute}.json`, { ...config, phases, checkpoint: { minutes: 0, keep: 6 } });
      const native = (...args: string[]) => llama4(["train", "--threads", "2", "--json", "--config", file, ...args]);
      objectOf(await native("--out", out, "--compute", compute));
      cpSync(out, again, { recursive: true });
      rmSync(join(again, "model"), { recursive: true });
      for (const name of checkpointsOf(again).slice(2)) rmSync(join(again, "checkpoints", name), { recursive: true });
      objectOf(await native("--out", again, "--resume"));
      expect(logOf(again).filter(({ type }) => type === "step").length).toBe(6);
      expect(logOf(again)).toEqual(logOf(out));
      const moments = "checkpoints/step-00000006/training/moments.safetensors";
      for (const name of ["model/model.safetensors", moments])
        expect(readFileSync(join(again, name)).equals(readFileSync(join(out, name)))).toBe(true);
    },
    600_000,
  );

  // A disk of its own needs a mount namespace, which some machines do not give to everybody.
  const mount = "mount -t tmpfs -o size=600k none";
  const mayMount = spawnSync("unshare", ["-rm", "sh", "-c", `${mount} /mnt`]).status === 0;
  it.skipIf(!mayMount)("on a full disk says so, and leaves the last good checkpoint", async () => {
    const disk = at("disk");
    const copy = at("rescued");
    mkdirSync(disk);
    const args = [
      "train",
      "--backend",
      "reference",
      "--json",
      "--config",
      at("config.json"),
      "--out",
      join(disk, "run"),
    ];
    const script = `${mount} "$0" && "$@"; status=$?; cp -r "$0/run" "${copy}"; exit $status`;
    const ended = spawnSync("unshare", ["-rm", "sh", "-c", script, disk, process.execPath, main, ...args], {
      encoding: "utf8",
    });
    expect(ended.status).toBe(1);
    const { name, message } = JSON.parse(ended.stdout).error;
    expect(name === "CapacityError" || /disk is full/.test(message)).toBe(true);
    for (const kept of checkpointsOf(copy)) expect(kept).not.toMatch(/partial/);
    const resumed = objectOf(await train("--config", at("config.json"), "--out", copy, "--resume"));
    expect(resumed).toMatchObject({ steps });
    expect(weightsOf(join(copy, "model")).equals(weightsOf(join(at("whole"), "model")))).toBe(true);
  });
});

/** Everything in a run's folder and among its checkpoints. */
function leftIn(out: string): string[] {
  return [...readdirSync(out), ...checkpointsOf(out)].sort();
}

function checkpointsSafely(out: string): string[] {
  return existsSync(join(out, "checkpoints")) ? checkpointsOf(out) : [];
}
