// Low-rank changes of frozen weights (LoRA, Hu et al. 2021, arXiv:2106.09685): beside a matrix W stand b and a, and a
// product by it is W·x + scale · b·(a·x). Only a and b learn; b begins at 0, so that the model begins as it was.
//
// r rank · O out · I in · E experts · F expert width

import type { LayerKind } from "../model/config.ts";
import { type Parameters, type Slot, weightsOf } from "../model/parameters.ts";
import type { TrainingBackend } from "../tensor/backend.ts";
import { linear, permute, reshape } from "../tensor/ops.ts";
import { elementCount, type Tensor } from "../tensor/tensor.ts";
import { type Leaf, mapWeights, type Weights } from "./leaves.ts";

export interface LoraOptions {
  readonly rank: number;
  /** The scale is alpha / rank. */
  readonly alpha: number;
  readonly slots: readonly Slot[];
}

/** What a config may name, and the slots that it means. */
export const loraTargets: Readonly<Record<string, readonly Slot[]>> = {
  attention: ["wq", "wk", "wv", "wo"],
  /** The shared expert; in a dense layer its feed-forward. */
  shared: ["w1", "w3", "w2"],
  experts: ["gateUp", "down"],
  ...{ wq: ["wq"], wk: ["wk"], wv: ["wv"], wo: ["wo"], w1: ["w1"], w2: ["w2"], w3: ["w3"] },
  ...{ gateUp: ["gateUp"], down: ["down"] },
};

/** The change of one slot: of one matrix, or of the gate and up of a bank, which share a. */
export interface LoraAdapter {
  readonly layer: number;
  readonly slot: Slot;
  readonly a: Tensor; // [r, I] or [E, r, I]
  /** One for each weight of the slot. */
  readonly b: readonly Tensor[]; // [O, r] or [E, O, r]
}

/** Adapters at their beginning: a uniform within ±1/√I, as PyTorch begins a linear layer, and b 0. The same seed, the same numbers. */
export function beginAdapters(
  backend: TrainingBackend,
  { layers }: Parameters,
  { rank, slots }: LoraOptions,
  seed: number,
): LoraAdapter[] {
  return layers.flatMap((block, layer) =>
    slots.flatMap((slot, place): LoraAdapter[] => {
      const weights = weightsOf(block, slot);
      if (weights.length === 0) return [];
      const { shape } = weights[0]!;
      const [O, I] = shape.slice(-2) as [number, number];
      const stack = shape.slice(0, -2);
      const a = uniform(elementCount([...stack, rank, I]), 1 / Math.sqrt(I), `${seed} ${layer} ${place} ${slot}`);
      const zeros = () => backend.from(new Float32Array(elementCount([...stack, O, rank])), [...stack, O, rank]);
      return [{ layer, slot, a: backend.from(a, [...stack, rank, I]), b: weights.map(zeros) }];
    }),
  );
}

function uniform(n: number, most: number, key: string): Float32Array {
  let state = 0x811c9dc5; // FNV-1a of the key, then a walk mixed by MurmurHash3's finaliser
  for (let i = 0; i < key.length; i++) state = Math.imul(state ^ key.charCodeAt(i), 0x01000193);
  return Float32Array.from({ length: n }, () => {
    state = (state + 0x9e3779b9) | 0;
    let x = Math.imul(state ^ (state >>> 16), 0x85ebca6b);
    x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
    return most * (((x ^ (x >>> 16)) >>> 0) / 2 ** 31 - 1);
  });
}

/** What learns, by name. */
export function adapterLeaves(adapters: readonly LoraAdapter[]): Leaf[] {
  return adapters.flatMap(({ layer, slot, a, b }) => {
    const name = `text.layers.${layer}.${slot}`;
    const parts = slot === "gateUp" ? ["gate", "up"] : [""];
    return [
      { name: `${name}.loraA`, weight: a },
      ...b.map((weight, i) => ({ name: `${name}.loraB${parts[i] ? `.${parts[i]}` : ""}`, weight })),
    ];
  });
}

/** The tree with `change` of every weight that an adapter changes; the others as `rest` makes them. */
export function withAdapters(
  weights: Weights,
  adapters: readonly LoraAdapter[],
  change: (weight: Tensor, a: Tensor, b: Tensor) => Tensor,
  rest: (weight: Tensor) => Tensor = (weight) => weight,
): Weights {
  const pairs = new Map<Tensor, readonly [Tensor, Tensor]>();
  for (const { layer, slot, a, b } of adapters)
    for (const [i, weight] of weightsOf(weights.text.layers[layer]!, slot).entries()) pairs.set(weight, [a, b[i]!]);
  return mapWeights(weights, (weight) => {
    const pair = pairs.get(weight);
    return pair ? change(weight, ...pair) : rest(weight);
  });
}

/** `weight + scale · b·a` as a tensor of its own. */
export function mergedWeight(backend: TrainingBackend, weight: Tensor, a: Tensor, b: Tensor, scale: number): Tensor {
  const [E, O, I] = [1, ...weight.shape].slice(-3) as [number, number, number];
  let product: Tensor;
  if (weight.shape.length === 2)
    product = linear(b, permute(a, [1, 0])); // [O, I]
  else {
    const starts = Int32Array.from({ length: E + 1 }, (_, e) => e * O);
    const rows = reshape(b, [E * O, a.shape[1]!]);
    product = reshape(backend.backward!.groupedLinear(rows, permute(a, [0, 2, 1]), starts), [E, O, I]);
  }
  backend.blend(product, weight, scale, 1);
  return product;
}

/** The adapters that fit a model's layers: a slot that no layer has is a mistake. */
export function missingSlots(slots: readonly Slot[], layers: readonly LayerKind[]): Slot[] {
  const isThere = (slot: Slot) => (slot !== "gateUp" && slot !== "down") || layers.some(({ moe }) => moe);
  return slots.filter((slot) => !isThere(slot));
}
