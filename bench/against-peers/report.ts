// What the samples say: medians, spread, share of the machine's ceiling, and how many times each peer we are.

import { basename } from "node:path";
import type { Ceilings } from "../../src/backends/native/backend.ts";
import { median } from "../samples.ts";
import { type Case, caseName, type Reading } from "./engines.ts";

/** One process: an engine on a case, between two probes of the machine. */
export interface Sample extends Reading {
  readonly model: string;
  readonly case: Case;
  readonly engine: string;
  readonly threads: number;
  readonly round: number;
  readonly at: string;
  readonly before: Ceilings;
  readonly after: Ceilings;
}

export interface Row {
  readonly model: string;
  readonly case: string;
  readonly engine: string;
  readonly rounds: number;
  /** Tokens a second. */
  readonly median: number;
  readonly least: number;
  readonly most: number;
  /** Of the ceiling probed beside each sample: int8 operations for prefill, DRAM read for decode. */
  readonly share: number | undefined;
  /** Ours over this engine's, of the same round. */
  readonly ratio: Summary | undefined;
}

interface Summary {
  readonly median: number;
  readonly least: number;
  readonly most: number;
}

/** How much faster several sequences together decode than one, and how much faster the bytes that they read allow. */
export interface Gain {
  readonly model: string;
  readonly case: string;
  readonly gain: number;
  readonly bound: number;
}

export interface Report {
  readonly rows: readonly Row[];
  /** Of the fastest peer in each round. */
  readonly best: readonly Row[];
  readonly gains: readonly Gain[];
  readonly ceilings: { readonly [name in keyof Ceilings]: Summary };
}

export function reportOf(samples: readonly Sample[]): Report {
  const best = rowsOf([...samples.filter((s) => s.engine === "llama4"), ...bestOf(samples)]);
  const probes = samples.flatMap(({ before, after }) => [before, after]);
  const ceiling = (name: keyof Ceilings) => summary(probes.map((probe) => probe[name]));
  return {
    rows: rowsOf(samples),
    best: best.filter((row) => row.engine !== "llama4"),
    gains: gainsOf(samples),
    ceilings: {
      dramReadGBps: ceiling("dramReadGBps"),
      int8Gops: ceiling("int8Gops"),
      f32Gflops: ceiling("f32Gflops"),
      bf16Gflops: ceiling("bf16Gflops"),
    },
  };
}

const summary = (values: readonly number[]): Summary => ({
  median: median(values),
  least: Math.min(...values),
  most: Math.max(...values),
});

/** A row for each model, case and engine, in the order of the samples. */
function rowsOf(samples: readonly Sample[]): Row[] {
  return [...grouped(samples).values()].map((group) => {
    const { model, case: c, engine } = group[0]!;
    const beside = samples.filter(
      (s) => s.engine === "llama4" && s.model === model && caseName(s.case) === caseName(c),
    );
    const work = beside.find((s) => s.work !== undefined)?.work;
    const ratios = group.flatMap(({ round, samples: theirs }) => {
      const same = beside.find((s) => s.round === round);
      return same && engine !== "llama4" ? [median(same.samples) / median(theirs)] : [];
    });
    return {
      ...{ model: basename(model), case: caseName(c), engine, rounds: group.length },
      ...summary(group.map((s) => median(s.samples))),
      share: work === undefined ? undefined : median(group.map((s) => (work * median(s.samples)) / ceilingOf(s))),
      ratio: ratios.length > 0 ? summary(ratios) : undefined,
    };
  });
}

/** The fastest of each round: `best ik` of `ik` and `ik/rtr`, variants of one engine, and `best of all` peers. */
function bestOf(samples: readonly Sample[]): Sample[] {
  const peers = samples.filter((s) => s.engine !== "llama4");
  const family = (s: Sample) => s.engine.split("/")[0]!;
  const varied = new Set(peers.filter((s) => s.engine !== family(s)).map(family));
  const best = new Map<string, Sample>();
  for (const peer of peers)
    for (const name of varied.has(family(peer)) ? [family(peer), "of all"] : ["of all"]) {
      const s = { ...peer, engine: `best ${name}` };
      const fastest = best.get(`${keyOf(s)}\n${s.round}`);
      if (!fastest || median(s.samples) > median(fastest.samples)) best.set(`${keyOf(s)}\n${s.round}`, s);
    }
  return [...best.values()];
}

function gainsOf(samples: readonly Sample[]): Gain[] {
  const ours = samples.filter((s) => s.engine === "llama4");
  const alone = ours.filter((s) => s.case.kind === "decode");
  return [...grouped(ours.filter((s) => s.case.kind === "batch")).values()].flatMap((group) => {
    const { model, case: c, work = 0 } = group[0]!;
    const pairs = group.flatMap((s) => {
      const one = alone.find((a) => a.model === model && a.round === s.round);
      return one?.work ? [{ gain: median(s.samples) / median(one.samples), bound: one.work / work }] : [];
    });
    if (pairs.length === 0) return [];
    const gain = median(pairs.map((p) => p.gain));
    return [{ model: basename(model), case: caseName(c), gain, bound: pairs[0]!.bound }];
  });
}

const keyOf = (s: Sample) => `${s.model}\n${caseName(s.case)}\n${s.engine}`;

function grouped(samples: readonly Sample[]): Map<string, Sample[]> {
  const groups = new Map<string, Sample[]>();
  for (const s of samples) groups.set(keyOf(s), [...(groups.get(keyOf(s)) ?? []), s]);
  return groups;
}

/** Operations or bytes a second, the mean of the probes before and after. */
function ceilingOf({ case: { kind }, before, after }: Sample): number {
  const of = (c: Ceilings) => 1e9 * (kind === "prefill" ? c.int8Gops : c.dramReadGBps);
  return (of(before) + of(after)) / 2;
}

export function textOf({ rows, best, gains, ceilings }: Report): string {
  const gained = gains.map(
    ({ model, case: c, gain, bound }) =>
      `${model}, ${c}: ${gain.toFixed(2)} × one sequence, ${((100 * gain) / bound).toFixed(0)} % of the ${bound.toFixed(2)} × that the bytes allow.`,
  );
  const fastest = ["The fastest peer of each round:", tableOf(best)];
  return [tableOf(rows), ...(best.length > 0 ? fastest : []), [...gained, ceilingsLine(ceilings)].join("\n")].join(
    "\n\n",
  );
}

function tableOf(rows: readonly Row[]): string {
  const number = (x: number) => (x < 100 ? x.toFixed(1) : x.toFixed(0));
  const cells = rows.map((r) => [
    ...[r.model, r.case, r.engine, number(r.median), `${number(r.least)}–${number(r.most)}`],
    r.share === undefined ? "" : `${(100 * r.share).toFixed(0)} %`,
    r.ratio ? `${r.ratio.median.toFixed(2)} (${r.ratio.least.toFixed(2)}–${r.ratio.most.toFixed(2)})` : "",
    `${r.rounds}`,
  ]);
  const head = ["model", "case", "engine", "tokens/s", "spread", "of ceiling", "llama4 ×", "rounds"];
  return [head, head.map(() => "---"), ...cells].map((row) => `| ${row.join(" | ")} |`).join("\n");
}

function ceilingsLine(ceilings: Report["ceilings"]): string {
  const range = (name: keyof Ceilings, unit: string) => {
    const { median, least, most } = ceilings[name];
    return `${median.toFixed(0)} ${unit} (${least.toFixed(0)}–${most.toFixed(0)})`;
  };
  const parts = [
    `DRAM read ${range("dramReadGBps", "GB/s")}`,
    `int8 ${range("int8Gops", "GOP/s")}`,
    `f32 ${range("f32Gflops", "GFLOP/s")}`,
    `bf16 ${range("bf16Gflops", "GFLOP/s")}`,
  ];
  return `Ceilings probed beside the samples: ${parts.join(", ")}.`;
}
