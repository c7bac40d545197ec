// Routers that use all their experts. Either a loss pulls the choices apart (Fedus et al. 2021, arXiv:2101.03961), or a
// bias that only the choice sees is moved a little after each update towards experts with too little to do (Wang et al.
// 2024, arXiv:2408.15664). No token is dropped for it. A router z-loss keeps logits small (Zoph et al. 2022, arXiv:2202.08906).
//
// T tokens · E experts

import type { Llama4Config } from "../model/config.ts";
import type { Step } from "../model/transformer.ts";
import type { Routes, TrainingBackend } from "../tensor/backend.ts";
import { add, route } from "../tensor/ops.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { Router } from "./tape.ts";

export interface BalanceOptions {
  readonly nExperts: number;
  readonly method:
    | { readonly kind: "none" }
    /** `weight · E · Σₑ shareₑ · mean softmaxₑ` of each layer is added to the loss. */
    | { readonly kind: "loss"; readonly weight: number }
    /** Biases move by `rate` at each update. */
    | { readonly kind: "bias"; readonly rate: number };
  /** Weight of each layer's mean squared log Σ exp of the logits; 0 = none. */
  readonly zLoss: number;
}

/**
 * Hand it to the tape as its `router`. In every step: `begin`, the forward pass, `loss` added to the step's own; after
 * the gradients of all steps of an update: `loads` to look at, then `update`.
 */
export class Balance implements Router {
  readonly #options: BalanceOptions;
  readonly #counts: Float64Array[] = []; // of each layer with experts, since the last update
  readonly #biases: Float64Array[] = [];
  #losses: Tensor[] = [];
  #layer = 0;
  #share = 1;

  constructor(options: BalanceOptions) {
    this.#options = options;
  }

  /** A forward pass begins: the next router is that of the first layer with experts. */
  begin(): void {
    this.#losses = [];
    this.#layer = 0;
  }

  bias(): Float64Array | undefined {
    if (this.#options.method.kind !== "bias" || this.#share === 0) return undefined;
    const share = this.#share;
    return this.#of(this.#biases).map((bias) => share * bias);
  }

  routed(logits: Tensor, { experts }: Routes, lossOf: Parameters<Router["routed"]>[2]): void {
    const { method, nExperts, zLoss } = this.#options;
    const counts = this.#of(this.#counts);
    const shares = new Float64Array(nExperts);
    for (const e of experts) {
      counts[e]!++;
      shares[e]! += 1 / experts.length;
    }
    const balance = method.kind === "loss" ? method.weight : 0;
    if (balance > 0 || zLoss > 0) this.#losses.push(lossOf(logits, { shares, balance, z: zLoss }));
    this.#layer++;
  }

  /** The loss with what the routers of the step add to it. */
  loss(of: Tensor): Tensor {
    return this.#losses.reduce((sum, loss) => add(sum, loss), of);
  }

  /** `[E]` of each layer with experts, in order: how many choices fell on each expert since the last update. */
  loads(): number[][] {
    return this.#counts.map((counts) => [...counts]);
  }

  /** The weights were updated: biases that are whole move by what was counted since, and counting begins anew. */
  update(): void {
    const { method } = this.#options;
    const isMoving = this.#share === 1; // else they would grow against their own fading
    for (const [layer, counts] of this.#counts.entries()) {
      if (method.kind === "bias" && isMoving) {
        const mean = counts.reduce((a, b) => a + b, 0) / counts.length;
        const bias = at(this.#biases, layer, counts.length);
        for (const [e, count] of counts.entries()) bias[e]! += method.rate * Math.sign(mean - count);
      }
      counts.fill(0);
    }
  }

  /**
   * Scales the biases' part in the choice, 1 at first; below 1 they no longer move. An exported model has no biases: fade
   * them to 0 over the last part of a run, and what was trained is what is exported.
   */
  fade(share: number): void {
    if (!(share >= 0 && share <= 1)) throw new RangeError(`the biases' share is ${share}; expected 0 to 1`);
    this.#share = share;
  }

  /** The choice as biases make it, for a forward pass that is only looked at; undefined where there are none. */
  choosing(backend: TrainingBackend, c: Llama4Config): Step["choose"] {
    if (this.#options.method.kind !== "bias" || this.#share === 0 || this.#biases.length === 0) return undefined;
    const withExperts = c.layers.flatMap(({ moe }, layer) => (moe ? [layer] : []));
    return (layer, logits) => {
      const bias = this.#biases[withExperts.indexOf(layer)];
      if (!bias) return route(logits, c.topK);
      const [T, E] = logits.shape as [number, number];
      const row = backend.from(
        bias.map((x) => this.#share * x),
        [1, E],
      );
      const choice = backend.route(backend.add(logits, backend.rows(row, new Int32Array(T))), c.topK);
      return { ...choice, scores: backend.backward!.scores(logits, choice) }; // training backends have it
    };
  }

  /** The biases of each layer with experts, for a checkpoint. */
  state(): number[][] {
    return this.#biases.map((bias) => [...bias]);
  }

  restore(state: readonly (readonly number[])[]): void {
    for (const [layer, values] of state.entries()) {
      if (values.length !== this.#options.nExperts)
        throw new RangeError(
          `the biases of layer ${layer} are ${values.length}; expected one for each of ${this.#options.nExperts} experts`,
        );
      at(this.#biases, layer, values.length).set(values);
    }
  }

  #of(layers: Float64Array[]): Float64Array {
    return at(layers, this.#layer, this.#options.nExperts);
  }
}

function at(layers: Float64Array[], layer: number, nExperts: number): Float64Array {
  while (layers.length <= layer) layers.push(new Float64Array(nExperts));
  return layers[layer]!;
}
