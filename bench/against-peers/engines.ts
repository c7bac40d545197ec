// How each engine is run on a case, as a process of its own, and how its answer is read.

import { execFile } from "node:child_process";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

const root = join(import.meta.dirname, "../..");

/** What is timed: a prompt, a reply, or the replies of several sequences at once, each with a prompt of its own. */
export interface Case {
  readonly kind: "prefill" | "decode" | "batch";
  /** Tokens of the prompt, of the reply, or sequences. */
  readonly size: number;
}

export interface Engine {
  readonly name: string;
  /** The command line for a case; undefined where it cannot run that. */
  command(model: string, c: Case): readonly string[] | undefined;
  /** Tokens a second, one for each repetition. */
  read(output: Output, c: Case): Reading;
}

export interface Output {
  readonly stdout: string;
  readonly stderr: string;
}

export interface Reading {
  readonly samples: readonly number[];
  /** Which build answered. */
  readonly version?: string;
  /** Operations that a token of a prompt costs, or bytes of weights that a decoded token reads. */
  readonly work?: number;
}

export interface Settings {
  readonly threads: number;
  readonly repeat: number;
  readonly decodeTokens: number;
  /** Of each sequence of a batch. */
  readonly batchPrompt: number;
}

export const caseName = ({ kind, size }: Case): string => `${kind} ${size}`;

/** `llama4 bench`, from the source beside this file. */
export function ours(s: Settings, version: string): Engine {
  const main = ["node", "--import", join(root, "scripts/ts.mjs"), join(root, "src/cli/main.ts"), "bench", "--json"];
  return {
    name: "llama4",
    command(model, { kind, size }) {
      const [prompt, reply, batch] = sizesOf(s, { kind, size });
      const counts = ["--prompt-tokens", prompt, "--gen-tokens", reply + 1, "--batch", batch, "--runs", s.repeat];
      return [...main, "--model", model, "--threads", s.threads, ...counts].map(String);
    },
    read({ stdout }, { kind }) {
      const { prefill, decode, batch } = JSON.parse(stdout);
      return kind === "prefill"
        ? { samples: prefill.samples, version, work: prefill.opsPerToken }
        : { samples: decode.samples, version, work: decode.bytesPerStep / batch };
    },
  };
}

/** Prompt and reply tokens, and sequences. A reply needs one token more: the first ends the prefill. */
function sizesOf({ decodeTokens, batchPrompt }: Settings, { kind, size }: Case): [number, number, number] {
  if (kind === "prefill") return [size, 1, 1];
  return kind === "decode" ? [1, size, 1] : [batchPrompt, decodeTokens, size];
}

/** A llama.cpp or a fork of it, by the command lines of its `llama-bench` and `llama-batched-bench`. */
export function llamaCpp(name: string, s: Settings, bench?: string, batchedBench?: string): Engine {
  return {
    name,
    command(model, { kind, size }) {
      const common = ["-m", model, "-t", `${s.threads}`];
      if (kind === "batch") {
        const sizes = ["-npp", `${s.batchPrompt}`, "-ntg", `${s.decodeTokens}`, "-npl", `${size}`];
        const context = ["-c", `${size * (s.batchPrompt + s.decodeTokens)}`];
        return batchedBench === undefined ? undefined : [...words(batchedBench), ...common, ...sizes, ...context];
      }
      const sizes = kind === "prefill" ? ["-p", `${size}`, "-n", "0"] : ["-p", "0", "-n", `${size}`];
      return bench === undefined
        ? undefined
        : [...words(bench), ...common, ...sizes, "-r", `${s.repeat}`, "-o", "json"];
    },
    read: (output, c) => (c.kind === "batch" ? readBatchedBench(output, c.size) : readBench(output)),
  };
}

/** A program's path, made absolute because it runs elsewhere, and its flags. */
function words(line: string): string[] {
  const [program = "", ...flags] = line.trim().split(/\s+/);
  return [program.includes("/") ? resolve(program) : program, ...flags];
}

function readBench({ stdout }: Output): Reading {
  const [test] = JSON.parse(stdout.slice(stdout.indexOf("[\n")));
  return { samples: test.samples_ts, version: test.build_commit };
}

/** The row `| PP | TG | B | N_KV | T_PP s | S_PP t/s | T_TG s | S_TG t/s | …` of its table, which forks print on either stream. */
function readBatchedBench({ stdout, stderr }: Output, sequences: number): Reading {
  const rows = `${stdout}\n${stderr}`.split("\n").map((line) => line.split("|").map((cell) => Number(cell)));
  const row = rows.find((cells) => cells.length > 8 && cells[3] === sequences);
  if (!row) throw new Error(`llama-batched-bench: no row for ${sequences} sequences in its table`);
  return { samples: [row[8]!] };
}

/** node-llama-cpp, from the registry. */
export function nodeLlamaCpp(s: Settings): Engine {
  const script = join(root, "tests/peers/bench.mjs");
  return {
    name: "node-llama-cpp",
    command(model, c) {
      return ["node", script, model, ...sizesOf(s, c), s.threads, s.repeat].map(String);
    },
    read({ stdout }, { kind }) {
      const { prefill, decode, release } = JSON.parse(stdout);
      return { samples: kind === "prefill" ? prefill : decode, version: release };
    },
  };
}

/** Runs a command to its end, where the log files that some write disturb nobody. */
export function run([program, ...args]: readonly string[]): Promise<Output> {
  return new Promise((done, reject) => {
    const options = { cwd: tmpdir(), encoding: "utf8", maxBuffer: 1 << 28 } as const;
    execFile(program!, args, options, (error, stdout, stderr) => {
      if (error)
        reject(new Error(`${program} ${args.join(" ")}: ended with ${error.code}: ${(stderr + stdout).slice(-2000)}`));
      else done({ stdout, stderr });
    });
  });
}
