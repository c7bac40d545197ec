// The learning rate over a run, as a share of its peak.

export interface Schedule {
  /**
   * `wsd`: warm-up, stable, decay (Hu et al. 2024, arXiv:2404.06395); `cosine`: warm-up, then half a cosine
   * (Loshchilov & Hutter 2017, arXiv:1608.03983).
   */
  readonly kind: "wsd" | "cosine";
  /** Steps in all. */
  readonly steps: number;
  /** Steps of linear growth at the beginning. */
  readonly warmup: number;
  /** Of `wsd`: steps of linear fall at the end. */
  readonly decay: number;
  /** The share of the peak that is left at the end. */
  readonly final: number;
}

/** The share of the peak rate at a step, counted from 0. */
export function rateAt({ kind, steps, warmup, decay, final }: Schedule, step: number): number {
  if (step < warmup) return (step + 1) / warmup;
  if (kind === "cosine") {
    const done = Math.min(1, (step - warmup) / Math.max(1, steps - warmup));
    return final + ((1 - final) * (1 + Math.cos(Math.PI * done))) / 2;
  }
  const left = Math.max(0, steps - step);
  return left >= decay ? 1 : final + (1 - final) * (left / decay);
}

// Experts need some steps to take over the choices of a bias that goes: so the fall of a schedule without one.
const shortestFall = { share: 1 / 20, steps: 4 };

/**
 * The share of the balancing biases at a step: whole until the rate falls, none in the last half of its fall. A fall
 * shorter than a twentieth of the run, or 4 steps, counts as that long.
 */
export function biasShareAt({ kind, steps, decay }: Schedule, step: number): number {
  const fall = Math.max(kind === "wsd" ? decay : steps / 4, shortestFall.share * steps, shortestFall.steps);
  return Math.max(0, Math.min(1, (2 * (steps - step)) / fall - 1));
}
