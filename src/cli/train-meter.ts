// What a person sees of a run while it goes on: a few lines on a terminal that are drawn anew, or a line now and then.

import type { NativeBackend } from "../backends/native/backend.ts";
import { countParameters, type Llama4Config, tokensPerTile } from "../model/config.ts";
import type { TrainingBackend } from "../tensor/backend.ts";
import type { HeldOutLoss, Sample, StepReport } from "../train/trainer.ts";

type Step = StepReport & { readonly seconds: number };

const quietMs = 10_000; // between lines where stderr is no terminal
const drawMs = 200;
const smoothing = 0.95;

/** Draws what it is told. */
export class Meter {
  readonly #model: Llama4Config;
  readonly #steps: number;
  readonly #isTerminal = process.stderr.isTTY === true;
  /** Operations a second of which the machine is capable in f32; undefined in the reference. */
  readonly #peak: number | undefined;
  readonly #type: "f32" | "bf16"; // that products are computed in
  readonly #losses: number[] = [];
  /** The mean of about the last twenty losses: their sum, in which old ones fade, and how many it is of. */
  #lossSum = 0;
  #lossCount = 0;
  #seconds: number | undefined; // a step, smoothed
  #held = "";
  #sample = "";
  #drawn = 0; // lines on the screen
  #next = 0;
  #from: number;

  constructor(model: Llama4Config, backend: TrainingBackend, steps: number, from: number) {
    this.#model = model;
    this.#steps = steps;
    this.#from = from;
    const native = "ceilings" in backend ? (backend as NativeBackend) : undefined;
    this.#type = native?.activations === "bf16" ? "bf16" : "f32";
    this.#peak = native && 1e9 * native.ceilings()[`${this.#type}Gflops`];
  }

  step(step: Step): void {
    this.#lossSum = smoothing * this.#lossSum + step.loss;
    this.#lossCount = smoothing * this.#lossCount + 1;
    this.#seconds =
      this.#seconds === undefined || step.step === this.#from + 2
        ? step.seconds
        : smoothing * this.#seconds + (1 - smoothing) * step.seconds;
    this.#losses.push(this.#lossSum / this.#lossCount);
    const now = performance.now();
    if (now < this.#next && step.step < this.#steps) return;
    this.#next = now + (this.#isTerminal ? drawMs : quietMs);
    if (this.#isTerminal) this.#draw(step);
    else process.stderr.write(`${this.#line(step)}\n`);
  }

  heldOut(losses: Readonly<Record<string, HeldOutLoss>>, [sample]: readonly Sample[]): void {
    this.#held = Object.entries(losses)
      .map(([name, { loss, bitsPerByte }]) => `${name} ${loss.toFixed(3)} (${bitsPerByte.toFixed(2)} bits/byte)`)
      .join(", ");
    if (sample) this.#sample = `${oneLine(sample.prompt).slice(-60)} → ${oneLine(sample.text)}`;
    if (!this.#isTerminal && this.#held) process.stderr.write(`held out: ${this.#held}\n`);
  }

  /** Leaves the last drawing where it is. */
  stop(savedStep: number): void {
    const saved = savedStep > 0 ? `checkpoint at step ${savedStep.toLocaleString("en")}` : "no checkpoint yet";
    if (this.#drawn > 0 || !this.#isTerminal) process.stderr.write(`${saved}\n`);
    this.#drawn = 0;
  }

  #line(step: Step): string {
    const perSecond = step.tokens / this.#seconds!;
    const share = this.#peak && flops(this.#model, step) / this.#seconds! / this.#peak;
    const left = (this.#steps - step.step) * this.#seconds!;
    return [
      `step ${step.step.toLocaleString("en")}/${this.#steps.toLocaleString("en")}`,
      `loss ${step.loss.toFixed(3)} (mean ${(this.#lossSum / this.#lossCount).toFixed(3)})`,
      ...taughtOf(step),
      `rate ${step.rate.toExponential(1)}`,
      `${Math.round(perSecond).toLocaleString("en")} tokens/s${share ? ` (${(100 * share).toFixed(0)} % of the ${this.#type} peak)` : ""}`,
      ...loadOf(step),
      `${duration(left)} left`,
    ].join(", ");
  }

  #draw(step: Step): void {
    const width = Math.max(40, (process.stderr.columns ?? 80) - 1);
    const done = Math.round((step.step / this.#steps) * 40);
    const lines = [
      `${"█".repeat(done)}${"░".repeat(40 - done)} ${((100 * step.step) / this.#steps).toFixed(1)} %`,
      this.#line(step),
      `loss ${sparkline(this.#losses, Math.min(60, width - 8))}`,
      ...(this.#held ? [`held out: ${this.#held}`] : []),
      ...(this.#sample ? [this.#sample] : []),
    ].map((line) => line.slice(0, width));
    const up = this.#drawn > 0 ? `\x1b[${this.#drawn}A` : "";
    process.stderr.write(`${up}${lines.map((line) => `\x1b[2K${line}\n`).join("")}\x1b[J`);
    this.#drawn = lines.length;
  }
}

/** Floating-point operations of a step's products with weights: two a weight forward, four on the way back. */
export function flops(
  c: Llama4Config,
  { tokens, counted, tiles }: Pick<StepReport, "tokens" | "counted" | "tiles">,
): number {
  const { vision, ...text } = c;
  const table = c.vocabSize * c.dim;
  const layers = countParameters(text).active - (c.tied ? 1 : 2) * table;
  const rows = vision ? (vision.imageSize / vision.patchSize) ** 2 : 0;
  const seen = vision ? countParameters(c).total - countParameters(text).total : 0;
  const perTile = vision ? rows * seen - (rows - tokensPerTile(vision)) * (vision.adapterDim * vision.outputDim) : 0;
  return 6 * (layers * tokens + table * counted + perTile * tiles);
}

function taughtOf({ taught }: StepReport): string[] {
  if (!taught) return [];
  return [`${taught.divergence.toFixed(3)} from the teacher (${(100 * taught.share).toFixed(0)} % of the loss)`];
}

/** The busiest and the idlest expert of any layer. */
function loadOf({ load }: StepReport): string[] {
  const shares = load.flat();
  if (shares.length === 0) return [];
  return [`experts ${percent(Math.min(...shares))} to ${percent(Math.max(...shares))}`];
}

const percent = (share: number) => `${(100 * share).toFixed(0)} %`;
const oneLine = (text: string) =>
  text
    .replaceAll(/<\|[^|]*\|>/g, " ")
    .replaceAll(/\s+/g, " ")
    .trim();

/** A time for people: to the minute, below half of one to the second. */
export function duration(seconds: number): string {
  const minutes = Math.round(seconds / 60);
  if (minutes < 1) return `${Math.round(seconds)} s`;
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

const bars = "▁▂▃▄▅▆▇█";

/** Means of equal runs of numbers, as bars. */
export function sparkline(numbers: readonly number[], width: number): string {
  const n = Math.min(width, numbers.length);
  const means = Array.from({ length: n }, (_, i) => {
    const run = numbers.slice(Math.floor((i * numbers.length) / n), Math.floor(((i + 1) * numbers.length) / n));
    return run.reduce((sum, x) => sum + x, 0) / run.length;
  });
  const [low, high] = [Math.min(...means), Math.max(...means)];
  return means.map((x) => bars[high > low ? Math.round(((x - low) / (high - low)) * 7) : 0]).join("");
}
