// Distillation: a student learns from the tokens that came and from what a larger model of the family says could have
// come. Llama 4 Maverick was codistilled from Behemoth with "a novel distillation loss function that dynamically weights
// the soft and hard targets through training" (Meta, "The Llama 4 herd", 2025); the weighting was not published. Here the
// soft targets' share falls over the run, as the annealing of Clark et al. 2019, arXiv:1907.04829: at first the teacher
// says more than one token does, later its mistakes count less.

import type { Llama4Config } from "../model/config.ts";
import type { Backend, Segment } from "../tensor/backend.ts";
import type { Batch } from "./batches.ts";
import type { Weights } from "./leaves.ts";
import { logitsOf } from "./logits.ts";
import { decodeSoftTargets, encodeSoftTargets, type SoftTargets, softTargetsOf } from "./soft-targets.ts";

/** The soft targets' share of the loss over a run. */
export interface SoftShare {
  readonly kind: "linear" | "cosine" | "constant";
  readonly first: number;
  readonly last: number;
}

/** The share at a step, counted from 0, of so many. */
export function softShareAt({ kind, first, last }: SoftShare, step: number, steps: number): number {
  if (kind === "constant") return first;
  const done = Math.min(1, step / Math.max(1, steps - 1));
  return first + (last - first) * (kind === "linear" ? done : (1 - Math.cos(Math.PI * done)) / 2);
}

/** Says what comes next in the wanted rows of a batch. */
export interface Teacher {
  targets(batch: Batch): Promise<SoftTargets>;
}

/** A larger model, computed alongside. */
export class TeacherModel implements Teacher {
  readonly #backend: Backend;
  readonly #weights: Weights;
  readonly #model: Llama4Config;
  readonly #k: number;

  constructor(backend: Backend, weights: Weights, model: Llama4Config, k: number) {
    this.#backend = backend;
    this.#weights = weights;
    this.#model = model;
    this.#k = k;
  }

  targets(batch: Batch): Promise<SoftTargets> {
    const backend = this.#backend;
    return backend.scope(async () => {
      const logits = await logitsOf(backend, this.#weights, this.#model, batch);
      return softTargetsOf(backend, logits, this.#k);
    });
  }
}

/** Keeps bytes by keys of 32 hexadecimal digits. */
export interface TargetStore {
  get(key: string): Promise<Uint8Array | undefined>;
  put(key: string, bytes: Uint8Array): Promise<void>;
}

/**
 * A teacher whose answers are kept, segment by segment: documents that come whole are asked about once, in whatever
 * batch, order or run they come again.
 */
export class StoredTeacher implements Teacher {
  readonly #teacher: Teacher;
  readonly #store: TargetStore;
  readonly #shape: { readonly k: number; readonly vocabSize: number };
  /** Rows that the teacher was asked about, and rows whose answer was there. */
  readonly counts = { asked: 0, reused: 0 };

  constructor(teacher: Teacher, store: TargetStore, shape: { k: number; vocabSize: number }) {
    this.#teacher = teacher;
    this.#store = store;
    this.#shape = { ...shape, k: Math.min(shape.k, shape.vocabSize) };
  }

  async targets(batch: Batch): Promise<SoftTargets> {
    const { k, vocabSize } = this.#shape;
    const parts = batch.segments.map((segment) => partOf(batch, [segment]));
    const keys = await Promise.all(parts.map(keyOf));
    const found = await Promise.all(keys.map((key) => this.#store.get(key)));
    const missing = [...keys.keys()].filter((i) => !found[i] && parts[i]!.wanted.length > 0);
    if (missing.length > 0) {
      const asked = partOf(
        batch,
        missing.map((i) => batch.segments[i]!),
      );
      const answer = await this.#teacher.targets(asked);
      let row = 0;
      for (const i of missing) {
        const n = parts[i]!.wanted.length;
        const bytes = encodeSoftTargets(sliceOf(answer, row, n), vocabSize);
        await this.#store.put(keys[i]!, bytes);
        found[i] = bytes;
        row += n;
      }
      this.counts.asked += row;
    }
    this.counts.reused += batch.wanted.length - missing.reduce((sum, i) => sum + parts[i]!.wanted.length, 0);
    return joined(
      parts.flatMap(({ wanted }, i) =>
        wanted.length > 0 ? [decodeSoftTargets(found[i]!, wanted.length, k, vocabSize)] : [],
      ),
      k,
    );
  }
}

/** Some of a batch's segments as a batch. The wanted rows stand in the order of the segments, as the packer puts them. */
export function partOf({ tokens, segments: _, wanted, targets, images }: Batch, segments: readonly Segment[]): Batch {
  const part = { tokens: [] as number[], wanted: [] as number[], targets: [] as number[] };
  const own: Segment[] = [];
  const tiles: number[] = [];
  const at: number[] = [];
  const perTile = images ? images.at.length / images.tiles : 0;
  for (const { row, length, position, sequence } of segments) {
    const shift = part.tokens.length - row;
    const isHere = (place: number) => place >= row && place < row + length;
    own.push({ row: row + shift, length, position, sequence });
    part.tokens.push(...tokens.subarray(row, row + length));
    for (const [i, place] of wanted.entries())
      if (isHere(place)) {
        part.wanted.push(place + shift);
        part.targets.push(targets[i]!);
      }
    if (images)
      for (const [i, place] of images.at.entries())
        if (isHere(place)) {
          at.push(place + shift);
          if (i % perTile === 0) tiles.push(i / perTile);
        }
  }
  const size = images ? images.pixels.length / images.tiles : 0;
  const pixels = new Uint8Array(tiles.length * size);
  for (const [i, tile] of tiles.entries())
    pixels.set(images!.pixels.subarray(tile * size, (tile + 1) * size), i * size);
  return {
    tokens: Int32Array.from(part.tokens),
    segments: own,
    wanted: Int32Array.from(part.wanted),
    targets: Int32Array.from(part.targets),
    ...(tiles.length > 0 && { images: { pixels, tiles: tiles.length, at: Int32Array.from(at) } }),
  };
}

/** What the teacher's answer depends on: the tokens, which rows are wanted, and the pixels. */
async function keyOf({ tokens, wanted, images }: Batch): Promise<string> {
  const parts = [Int32Array.of(tokens.length, wanted.length), tokens, wanted].map((x) => new Uint8Array(x.buffer));
  const bytes = new Uint8Array(parts.reduce((sum, { length }) => sum + length, images?.pixels.length ?? 0));
  let place = 0;
  for (const part of [...parts, ...(images ? [images.pixels] : [])]) {
    bytes.set(part, place);
    place += part.length;
  }
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest.subarray(0, 16), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function sliceOf({ k, ids, probabilities, rest }: SoftTargets, row: number, n: number): SoftTargets {
  const [from, to] = [row * k, (row + n) * k];
  return {
    k,
    ids: ids.subarray(from, to),
    probabilities: probabilities.subarray(from, to),
    rest: rest.subarray(row, row + n),
  };
}

function joined(parts: readonly SoftTargets[], k: number): SoftTargets {
  const n = parts.reduce((sum, { rest }) => sum + rest.length, 0);
  const all = {
    k,
    ids: new Int32Array(n * k),
    probabilities: new Float64Array(n * k),
    rest: new Float64Array(n),
  };
  let row = 0;
  for (const { ids, probabilities, rest } of parts) {
    all.ids.set(ids, row * k);
    all.probabilities.set(probabilities, row * k);
    all.rest.set(rest, row);
    row += rest.length;
  }
  return all;
}
