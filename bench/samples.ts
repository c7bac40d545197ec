// What the benchmarks share: the median and spread of samples, and a record of the machine and commit beside them.

import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { cpus } from "node:os";

const sorted = (samples: readonly number[]) => [...samples].sort((a, b) => a - b);

export function median(samples: readonly number[]): number {
  const all = sorted(samples);
  const middle = (all.length - 1) / 2;
  return (all[Math.floor(middle)]! + all[Math.ceil(middle)]!) / 2;
}

export function spread(samples: readonly number[], digits = 2): string {
  const all = sorted(samples);
  return `${all[0]!.toFixed(digits)}–${all.at(-1)!.toFixed(digits)}`;
}

/** Writes `measured` as JSON, with what it was measured on. */
export function writeRecord(path: string, measured: object): void {
  const commit = execFileSync("git", ["rev-parse", "HEAD"], { encoding: "utf8" }).trim();
  const machine = { cpu: cpus()[0]?.model, cores: cpus().length, node: process.version };
  writeFileSync(path, `${JSON.stringify({ machine, commit, ...measured }, null, 1)}\n`);
}
