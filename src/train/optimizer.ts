// What gradients do to weights: clipping by their global norm, then AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) for
// each weight, or Muon for the matrices; and a moving average of the weights beside them.

import type { TrainingBackend } from "../tensor/backend.ts";
import { TrainingError } from "../tensor/errors.ts";
import { elementCount, type Tensor } from "../tensor/tensor.ts";
import type { Leaf } from "./leaves.ts";
import { isMuons, muonStep } from "./muon.ts";

export interface OptimizerOptions {
  readonly kind: "adamw" | "muon";
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  /** Decoupled weight decay of matrices; norms, biases and other vectors have none. */
  readonly decay: number;
  /** Gradients whose norm over all weights is larger are scaled down to it; 0 = never. */
  readonly clip: number;
  /** The vision encoder's rate as a share of the text model's. */
  readonly visionRate: number;
  /** Keeps a moving average of the weights, of which each step leaves this share; 0 = none. */
  readonly average: number;
}

/** What is kept for one weight. */
interface Kept {
  readonly name: string;
  readonly weight: Tensor;
  /** Of the gradient; Muon's momentum. */
  readonly mean: Tensor;
  /** Of the squared gradient; AdamW's only. */
  readonly square?: Tensor;
  readonly average?: Tensor;
  /** Steps that it took: those with a gradient. */
  updates: number;
}

/** How far an optimizer has come. */
export interface OptimizerProgress {
  readonly steps: number;
  /** Steps that each weight took, in the order of the leaves; without it, all of them. */
  readonly updates?: readonly number[] | undefined;
}

/** Holds the moments of every weight and takes steps. All tensors live as long as it does. */
export class Optimizer {
  readonly #backend: TrainingBackend;
  readonly #options: OptimizerOptions;
  readonly #kept: readonly Kept[];
  #steps = 0;

  constructor(backend: TrainingBackend, leaves: readonly Leaf[], options: OptimizerOptions) {
    this.#backend = backend;
    this.#options = options;
    const zeros = ({ shape }: Tensor) => backend.from(new Float32Array(elementCount(shape)), shape);
    this.#kept = leaves.map(({ name, weight }) => {
      const average = options.average > 0 && zeros(weight);
      if (average) backend.blend(average, weight, 0, 1);
      const square = !this.#takesMuon(name, weight) && zeros(weight);
      return { name, weight, mean: zeros(weight), ...(square && { square }), ...(average && { average }), updates: 0 };
    });
  }

  /** Steps taken so far. */
  get steps(): number {
    return this.#steps;
  }

  /**
   * One step with gradients in the order of the leaves; a weight without one stays as it is, with its moments, and its
   * average comes nearer. Returns their norm before clipping. Throws TrainingError, with nothing changed, where that is no number.
   */
  async step(gradients: readonly (Tensor | undefined)[], rate: number): Promise<number> {
    const { beta1, beta2, eps, decay, clip, visionRate } = this.#options;
    const squares = gradients.map((g) => (g ? this.#backend.sumSquares(g) : 0));
    const norm = Math.sqrt(squares.reduce((sum, square) => sum + square, 0));
    if (!Number.isFinite(norm)) {
      const odd = this.#kept.find((_, i) => !Number.isFinite(squares[i]));
      throw new TrainingError(
        `the gradient of ${odd?.name ?? "the weights"} is no number at step ${this.#steps + 1}; lower the rate, or clip gradients, and resume`,
      );
    }
    const scale = clip > 0 && norm > clip ? clip / norm : 1;
    this.#steps++;
    for (const [i, kept] of this.#kept.entries()) {
      const { name, weight, mean, square, average } = kept;
      const gradient = gradients[i];
      if (gradient) kept.updates++;
      const own = name.startsWith("vision.") ? rate * visionRate : rate;
      const shrink = weight.shape.length > 1 ? decay : 0;
      if (gradient && square)
        this.#backend.adamW(weight, gradient, mean, square, {
          ...{ rate: own, beta1, beta2, eps, decay: shrink, step: kept.updates, scale },
        });
      else if (gradient)
        await muonStep(this.#backend, weight, gradient, mean, {
          ...{ rate: own, momentum: 0.95, decay: shrink, scale },
        });
      if (average) this.#backend.blend(average, weight, this.#averaged, 1 - this.#averaged);
    }
    return norm;
  }

  /** The averaged weights in the order of the leaves; the weights themselves where none are kept. */
  averages(): Tensor[] {
    return this.#kept.map(({ average, weight }) => average ?? weight);
  }

  /** Everything but the weights that the next step depends on, by name. */
  state(): Leaf[] {
    return this.#kept.flatMap(({ name, mean, square, average }) =>
      Object.entries({ mean, square, average }).flatMap(([kind, weight]) =>
        weight ? [{ name: `${kind}.${name}`, weight }] : [],
      ),
    );
  }

  /** Of each weight, in the order of the leaves. */
  get updates(): number[] {
    return this.#kept.map(({ updates }) => updates);
  }

  /** Goes on from a state of `state()`. */
  restore({ steps, updates }: OptimizerProgress, state: ReadonlyMap<string, Tensor>): void {
    for (const { name, weight } of this.state()) {
      const stored = state.get(name);
      if (stored?.shape.join() !== weight.shape.join())
        throw new TrainingError(
          `the optimizer's state has ${stored ? `${name} as [${stored.shape}]` : `no ${name}`}; expected [${weight.shape}]: resume with the config that the run began with`,
        );
      this.#backend.blend(weight, stored, 0, 1);
    }
    this.#steps = steps;
    for (const [i, kept] of this.#kept.entries()) kept.updates = updates?.[i] ?? steps;
  }

  // At first an average over what there is, so that the random beginning does not stay in it.
  get #averaged(): number {
    return Math.min(this.#options.average, this.#steps / (this.#steps + 10));
  }

  #takesMuon(name: string, weight: Tensor): boolean {
    return this.#options.kind === "muon" && isMuons(name, weight);
  }
}
