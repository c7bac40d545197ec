// Which experts the passes behind some tokens went through, and how narrowly they were chosen.

import type { Routes } from "../tensor/backend.ts";
import { rows } from "../tensor/ops.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** The experts of the pass whose logits gave a token: that of the token before it, at its place. */
export interface TokenRoutes {
  /** Indices of the layers with experts. */
  readonly layers: readonly number[];
  /** For each of them the chosen experts, best first. */
  readonly experts: readonly (readonly number[])[];
  /** Their scores, the sigmoids of their logits, 0 to 1. */
  readonly scores: readonly (readonly number[])[];
  /** For each layer by how much the last chosen expert's logit is above the best of the others; null where all are chosen. */
  readonly margins: readonly (number | null)[];
}

/** Keeps what the routers decide about some rows of a step. */
export class RouteTrace {
  readonly #at: Int32Array;
  readonly #layers: number[] = [];
  /** By traced row, then by layer. */
  readonly #chosen: { readonly experts: number[]; readonly scores: number[]; readonly margin: number | null }[][];

  constructor(at: readonly number[]) {
    this.#at = Int32Array.from(at);
    this.#chosen = at.map(() => []);
  }

  /** `routes` of all T rows and the `logits` `[T, E]` that they come from. */
  async hear(layer: number, { topK, experts }: Routes, logits: Tensor): Promise<void> {
    const E = logits.shape[1]!;
    const read = await logits.backend.read(rows(logits, this.#at)); // [traced, E]
    this.#layers.push(layer);
    for (const [i, row] of this.#at.entries()) {
      const own = read.subarray(i * E, (i + 1) * E);
      const chosen = [...experts.subarray(row * topK, (row + 1) * topK)];
      const others = own.filter((_, expert) => !chosen.includes(expert));
      const margin = others.length > 0 ? own[chosen.at(-1)!]! - Math.max(...others) : null;
      this.#chosen[i]!.push({ experts: chosen, scores: chosen.map((expert) => sigmoid(own[expert]!)), margin });
    }
  }

  /** What was heard about a row; undefined where it is none of those. */
  of(row: number): TokenRoutes | undefined {
    const chosen = this.#chosen[this.#at.indexOf(row)];
    return (
      chosen && {
        layers: this.#layers,
        experts: chosen.map(({ experts }) => experts),
        scores: chosen.map(({ scores }) => scores),
        margins: chosen.map(({ margin }) => margin),
      }
    );
  }
}

const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));
