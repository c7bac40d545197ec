// The weights of a model as a list: each once, under the name of its place in the tree.

import { mapParameters, mapVision, type Parameters, type VisionParameters } from "../model/parameters.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** All weights of a model. */
export interface Weights<W = Tensor> {
  readonly text: Parameters<W>;
  /** There where the config has a vision encoder. */
  readonly vision?: VisionParameters<W>;
}

export interface Leaf<W = Tensor> {
  /** "text.layers.3.ffn.experts.gate" */
  readonly name: string;
  readonly weight: W;
}

/** Every weight with its name. A weight that stands twice (a tied output) is listed where it stands first. */
export function leavesOf<W extends object>(weights: Weights<W>): Leaf<W>[] {
  const all = new Set<unknown>(listed(weights));
  const names = new Map<W, string>();
  const walk = (node: object, name: string) => {
    if (!all.has(node)) for (const [key, inner] of Object.entries(node)) walk(inner, name ? `${name}.${key}` : key);
    else if (!names.has(node as W)) names.set(node as W, name); // it is one of `listed`
  };
  walk(weights, "");
  return [...names].map(([weight, name]) => ({ name, weight }));
}

/** The weights of `other`, which has the same shape of tree, in the order of `leavesOf(weights)`. */
export function inOrderOf<W extends object, B extends object>(weights: Weights<W>, other: Weights<B>): B[] {
  const [ours, theirs] = [listed(weights), listed(other)];
  const found = new Map<W, B>();
  for (const [i, weight] of ours.entries()) if (!found.has(weight)) found.set(weight, theirs[i]!);
  return leavesOf(weights).map(({ weight }) => found.get(weight)!);
}

/** The tree with every weight replaced; a weight that stands twice is replaced by the same. */
export function mapWeights<A, B>({ text, vision }: Weights<A>, f: (weight: A) => B): Weights<B> {
  const made = new Map<A, B>();
  const once = (weight: A) => {
    if (!made.has(weight)) made.set(weight, f(weight));
    return made.get(weight)!;
  };
  return { text: mapParameters(text, once), ...(vision && { vision: mapVision(vision, once) }) };
}

/** Every weight in the order of the tree, those that stand twice twice. */
function listed<W>({ text, vision }: Weights<W>): W[] {
  const list: W[] = [];
  mapParameters(text, (weight) => list.push(weight));
  if (vision) mapVision(vision, (weight) => list.push(weight));
  return list;
}
