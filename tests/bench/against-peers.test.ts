// The instrument itself, on made-up samples: what it reads from the peers' output and what it says of a set of samples.

import { describe, expect, it } from "vitest";
import { chartOf } from "../../bench/against-peers/chart.ts";
import { llamaCpp, ours } from "../../bench/against-peers/engines.ts";
import { reportOf, type Sample, textOf } from "../../bench/against-peers/report.ts";

const settings = { threads: 2, repeat: 1, decodeTokens: 64, batchPrompt: 32 };
const prefill = { kind: "prefill", size: 512 } as const;
const ceilings = (int8Gops: number) => ({ dramReadGBps: 40, int8Gops, f32Gflops: 250, bf16Gflops: 500 });

describe("against-peers", () => {
  it("reads llama-bench's JSON and both columns' place in llama-batched-bench's table", () => {
    const peer = llamaCpp("fork", settings, "llama-bench -rtr 1", "llama-batched-bench");
    const json = '[\n  { "build_commit": "abc", "n_prompt": 512, "samples_ts": [ 126.5 ] }\n]\n';
    expect(peer.read({ stdout: json, stderr: "" }, prefill)).toEqual({ samples: [126.5], version: "abc" });
    const table =
      "|    32 |     64 |    4 |    384 |    1.008 |   127.03 |    0.971 |    32.94 |    1.979 |    80.85 |\n";
    const batch = { kind: "batch", size: 4 } as const;
    expect(peer.read({ stdout: "", stderr: table }, batch)).toEqual({ samples: [32.94] });
    expect(() => peer.read({ stdout: "", stderr: table }, { ...batch, size: 16 })).toThrow(/no row for 16/);
  });

  it("puts a peer's flags first, and leaves out what it has no program for", () => {
    const peer = llamaCpp("fork", settings, "llama-bench -rtr 1");
    expect(peer.command("m.gguf", prefill)?.slice(0, 5)).toEqual(["llama-bench", "-rtr", "1", "-m", "m.gguf"]);
    expect(peer.command("m.gguf", { kind: "batch", size: 4 })).toBeUndefined();
  });

  it("decodes as many tokens with us as with the others: one reply token more, which ends the prefill", () => {
    const command = ours(settings, "abc").command("m.gguf", { kind: "decode", size: 64 })!.join(" ");
    expect(command).toContain("--prompt-tokens 1 --gen-tokens 65 --batch 1");
  });

  const sample = (engine: string, round: number, speed: number, int8Gops: number): Sample => ({
    ...{ model: "dir/m.gguf", case: prefill, engine, threads: 2, round, at: "", samples: [speed] },
    ...{ before: ceilings(int8Gops), after: ceilings(int8Gops) },
    ...(engine === "llama4" && { work: 2e9 }),
  });
  // In round 1 the machine had half its cores: speeds fell, ratios and shares did not.
  const samples = [
    sample("llama4", 0, 300, 1200),
    sample("peer", 0, 100, 1200),
    sample("llama4", 1, 150, 600),
    sample("peer", 1, 50, 600),
  ];

  it("compares engines within a round, and each sample with the ceiling beside it", () => {
    const [us, peer] = reportOf(samples).rows;
    expect(us).toMatchObject({ engine: "llama4", rounds: 2, median: 225, least: 150, most: 300, share: 0.5 });
    expect(us?.ratio).toBeUndefined();
    expect(peer?.ratio).toEqual({ median: 3, least: 3, most: 3 });
    expect(peer?.share).toBeCloseTo(1 / 6);
  });

  it("compares with the fastest variant of a peer, and the fastest of all, round by round", () => {
    const variants = [sample("peer/fast", 0, 80, 1200), sample("peer/fast", 1, 60, 600), sample("other", 0, 120, 1200)];
    const { best } = reportOf([...samples, ...variants]);
    expect(best.map(({ engine, ratio }) => [engine, ratio?.least, ratio?.most])).toEqual([
      ["best peer", 2.5, 3],
      ["best of all", 2.5, 2.5],
    ]);
  });

  it("says how much several sequences gain, and how much their bytes allow", () => {
    const decoding = { ...sample("llama4", 0, 20, 1200), case: { kind: "decode", size: 64 } as const, work: 1.6e9 };
    const batch = { ...sample("llama4", 0, 90, 1200), case: { kind: "batch", size: 16 } as const, work: 0.32e9 };
    const report = reportOf([decoding, batch]);
    expect(report.gains).toEqual([{ model: "m.gguf", case: "batch 16", gain: 4.5, bound: 5 }]);
    expect(textOf(report)).toContain("m.gguf, batch 16: 4.50 × one sequence, 90 % of the 5.00 × that the bytes allow.");
  });

  it("shows them as a table and as a picture", () => {
    const report = reportOf(samples);
    expect(textOf(report)).toContain("| m.gguf | prefill 512 | peer | 75.0 | 50.0–100 | 17 % | 3.00 (3.00–3.00) | 2 |");
    expect(chartOf(report.rows)).toMatch(/^<svg .*m\.gguf.*<\/svg>\n$/);
  });
});
