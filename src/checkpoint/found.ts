// What all formats' tables of names share: the shapes of a block, and looking tensors up by name.

import type { Llama4Config } from "../model/config.ts";
import type { Parameters, VisionParameters } from "../model/parameters.ts";
import { rowBytes } from "../tensor/dtype.ts";
import { CheckpointError } from "../tensor/errors.ts";
import type { Shape, TensorView } from "../tensor/tensor.ts";
import { show } from "./json.ts";

/** The trees of a checkpoint: the text model's, and the vision encoder's where there is one. */
export interface Bound {
  readonly parameters: Parameters<TensorView>;
  readonly vision?: VisionParameters<TensorView>;
}

/** The weights of a block beside its feed-forward part, `[out, in]` for a matrix. */
export function blockShapes(c: Llama4Config) {
  return {
    attentionNorm: [c.dim],
    wq: [c.nHeads * c.headDim, c.dim],
    wk: [c.nKvHeads * c.headDim, c.dim],
    wv: [c.nKvHeads * c.headDim, c.dim],
    wo: [c.dim, c.nHeads * c.headDim],
    ffnNorm: [c.dim],
  };
}

/** A block by its names, beside its feed-forward part. */
export function takeBlock(
  found: Found,
  names: Readonly<Record<keyof ReturnType<typeof blockShapes>, string>>,
  c: Llama4Config,
) {
  const shapes = blockShapes(c);
  const take = (key: keyof typeof shapes) => found.take(names[key], shapes[key]);
  return {
    attentionNorm: take("attentionNorm"),
    wq: take("wq"),
    wk: take("wk"),
    wv: take("wv"),
    wo: take("wo"),
    ffnNorm: take("ffnNorm"),
  };
}

/** A file's tensors by name; remembers which were asked for. */
export class Found {
  readonly #views = new Map<string, TensorView>();
  readonly #rest = new Set<string>();
  readonly #file: string;

  constructor(views: readonly TensorView[], file: string, rename: (name: string) => string = (name) => name) {
    this.#file = file;
    for (const view of views) this.#add(rename(view.name), view);
  }

  #add(name: string, view: TensorView): void {
    if (this.#views.has(name))
      throw new CheckpointError(
        `${this.#file}: ${show(name)} is there twice, the second time as ${show(view.name)}; expected each tensor once`,
      );
    this.#views.set(name, view);
    this.#rest.add(name);
  }

  has(name: string): boolean {
    return this.#views.has(name);
  }

  take(name: string, shape: Shape): TensorView {
    const view = this.#views.get(name);
    if (!view) throw new CheckpointError(`${this.#file}: no tensor ${show(name)}; ${this.#nearest(name)}`);
    if (view.shape.join() !== shape.join())
      throw new CheckpointError(
        `${this.#file}: ${show(view.name)} is [${view.shape.join(", ")}]; expected [${shape.join(", ")}] by the config`,
      );
    this.#rest.delete(name);
    return view;
  }

  /** Puts views of a fused matrix's q, k and v rows in its place. */
  split(fused: string, names: readonly string[], c: Llama4Config): void {
    const [q, kv] = [c.nHeads * c.headDim, c.nKvHeads * c.headDim];
    const view = this.take(fused, [q + 2 * kv, c.dim]);
    let row = 0;
    for (const [i, rows] of [q, kv, kv].entries()) {
      this.#add(names[i]!, { ...view, shape: [rows, c.dim], offset: view.offset + row * rowBytes(view.dtype, c.dim) });
      row += rows;
    }
  }

  /** Throws for a tensor that nobody asked for and that `isUnknown` does not let pass. */
  refuse(isUnknown: (name: string) => boolean | undefined): void {
    const unknown = [...this.#rest].filter(isUnknown);
    if (unknown.length === 0) return;
    const scales = unknown.find((name) => /_scale$/.test(name));
    if (scales)
      throw new CheckpointError(
        `${this.#file}: ${show(scales)} belongs to a quantization that is not read (of folders only compressed-tensors' 8-bit floats are); get the bf16 checkpoint or a GGUF`,
      );
    throw new CheckpointError(
      `${this.#file}: ${show(unknown[0])} belongs to no tensor of this config (${unknown.length} such); expected the config of the same model`,
    );
  }

  #nearest(name: string): string {
    // Of a large checkpoint only names of a similar length can be near.
    const candidates = [...this.#rest].filter((other) => Math.abs(other.length - name.length) < 32).slice(0, 4096);
    let best: string | undefined;
    let least = Number.POSITIVE_INFINITY;
    for (const other of candidates) {
      const distance = editDistance(name, other);
      if (distance < least) [best, least] = [other, distance];
    }
    return best === undefined ? "the file holds no name like it" : `nearest is ${show(best)}`;
  }
}

/** Levenshtein's: insertions, deletions and substitutions. */
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++)
      next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)));
    row = next;
  }
  return row[b.length]!;
}
