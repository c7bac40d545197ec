import type { Backward } from "./backward.ts";
import { dtypes, rowBytes } from "./dtype.ts";
import { RequestError } from "./errors.ts";
import type { Shape, Tensor, TensorView } from "./tensor.ts";

/**
 * Consecutive tokens of one sequence inside a step: rows `row … row + length - 1` hold the
 * positions `position … position + length - 1` of `sequence`.
 */
export interface Segment {
  readonly row: number;
  readonly length: number;
  readonly position: number;
  readonly sequence: number;
}

/**
 * What the queries of `attend` see. A query at position p of a sequence sees the keys of the same sequence at
 * positions `[start, p]`, start = 0, or `p - p mod chunk` with a chunk; with `causal: false` it sees its whole segment.
 *
 * With a `cache`, the step's keys and values are first written to the slots of their positions (`p`, or `p mod chunk`),
 * then the queries read the cache; a segment must then not cross a multiple of `chunk`. Without a cache the keys are
 * those of the step, and every segment starts at its sequence's first visible key.
 */
export interface Span {
  readonly segments: readonly Segment[];
  readonly chunk?: number;
  readonly causal?: boolean;
  readonly cache?: LayerCache;
}

/**
 * Blocks of key and value slots for several layers of one kind (chunk-local or global).
 * Block b of a layer holds `blockSize` slots of `heads` × `headDim` keys and as many values.
 */
export interface KVPool {
  readonly spec: KVPoolSpec;
  /** Bytes of one block over all layers of the pool, keys and values. */
  readonly blockBytes: number;
  /** Copies block `from` over block `to` in every layer. */
  copy(from: number, to: number): void;
  close(): void;
}

export interface KVPoolSpec {
  readonly layers: number;
  readonly blocks: number;
  /** Slots of a block. */
  readonly blockSize: number;
  readonly heads: number;
  readonly headDim: number;
  readonly dtype: KVDType;
}

/** How keys and values may be kept. q8_0 rounds them to blocks of 32 elements of a head, which must divide it. */
export const kvDtypes = ["f32", "f16", "q8_0"] as const;
export type KVDType = (typeof kvDtypes)[number];

/** Bytes of the keys of a slot in one layer, and of its values. Throws RequestError where the dtype cannot hold them. */
export function slotBytes({ heads, headDim, dtype }: Pick<KVPoolSpec, "heads" | "headDim" | "dtype">): number {
  const { blockElements } = dtypes[dtype];
  if (headDim % blockElements !== 0)
    throw new RequestError(
      `the cache's dtype is ${dtype} and a head has ${headDim} elements; expected a multiple of ${blockElements}, or f16`,
    );
  return heads * rowBytes(dtype, headDim);
}

/** One layer's part of a pool, with the block tables of the running sequences. */
export interface LayerCache {
  readonly pool: KVPool;
  /** The layer's index inside the pool. */
  readonly layer: number;
  /** sequence -> blocks: slot s of the sequence lies in block `table[⌊s / blockSize⌋]`. Throws for an unknown sequence. */
  table(sequence: number): Int32Array;
}

/** For each token the `topK` experts with the largest router logits, best first. */
export interface Routes {
  readonly topK: number;
  /** `[T · topK]`: expert of row t's k-th choice at `t · topK + k`. */
  readonly experts: Int32Array;
  /** `[T, topK]`: sigmoid of the chosen logits; scales the expert's input. */
  readonly scores: Tensor;
}

/** The routed experts of a layer: gate and up `[E, F, D]`, down `[E, D, F]`, each matrix `[out, in]`. */
export interface ExpertBank {
  readonly gate: Tensor;
  readonly up: Tensor;
  readonly down: Tensor;
}

/** One of them, gate and up `[F, D]`, down `[D, F]`: the shared expert of a layer. */
export type Expert = ExpertBank;

/** The operations of the model. Arguments were checked by the free functions in ops.ts; backends trust them. */
export interface Ops {
  /** `[V, D]`, T ids -> `[T, D]`. */
  embed(table: Tensor, ids: Int32Array): Tensor;
  /** `[T, I] · [O, I]ᵀ (+ [O])` -> `[T, O]`; w may be quantized. `exact`: float factors are not rounded to less. */
  linear(x: Tensor, w: Tensor, b?: Tensor, exact?: boolean): Tensor;
  /** `linear` of one x by each of three matrices. */
  qkv(x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor): [q: Tensor, k: Tensor, v: Tensor];
  add(a: Tensor, b: Tensor): Tensor;
  /** Elementwise; b may have extents of 1 where a has more. */
  mul(a: Tensor, b: Tensor): Tensor;
  /** `x · rsqrt(mean(x²) + eps) · w` over the last axis; w may be absent. */
  rmsNorm(x: Tensor, w: Tensor | null, eps: number): Tensor;
  /** `(x - mean) · rsqrt(variance + eps) · w + b` over the last axis. */
  layerNorm(x: Tensor, w: Tensor, b: Tensor, eps: number): Tensor;
  /** `silu(gate) ⊙ up`. */
  swiglu(gate: Tensor, up: Tensor): Tensor;
  /** `x · Φ(x)`, by the error function. */
  gelu(x: Tensor): Tensor;
  /** `down · swiglu(gate · x, up · x)`: x `[T, D]`, gate and up `[F, D]`, down `[D, F]` -> `[T, D]`. */
  feedForward(x: Tensor, gate: Tensor, up: Tensor, down: Tensor): Tensor;
  /** Rotates the pairs (2j, 2j+1) of `[T, H, d]` by `rotations` `[T, d/2, 2]` = (cos, sin). */
  rope(x: Tensor, rotations: Tensor): Tensor;
  /** q `[T, H, d]`, k and v `[T, K, d]` -> `[T, H, d]`; scores are scaled by `1/√d`; head h reads K/V head `⌊h·K/H⌋`. */
  attend(q: Tensor, k: Tensor, v: Tensor, span: Span): Tensor;
  /** `[T, E]` -> the best topK of each row; ties go to the lower expert. */
  route(logits: Tensor, topK: number): Routes;
  /** `Σₖ down(swiglu(gate(sₖ·x), up(sₖ·x)))` over each row's experts, beside `feedForward(x)` of a shared one: `[T, D]` -> `[T, D]`. */
  experts(x: Tensor, bank: ExpertBank, routes: Routes, shared?: Expert): Promise<Tensor>;
  reshape(x: Tensor, shape: Shape): Tensor;
  permute(x: Tensor, order: readonly number[]): Tensor;
  /** The rows `at` of the first axis. */
  rows(x: Tensor, at: Int32Array): Tensor;
  /** x with its rows `at` replaced by `rows`, in order. */
  splice(x: Tensor, rows: Tensor, at: Int32Array): Tensor;
  /** Mean negative log-likelihood of `[T, V]` logits; targets below 0 do not count. Scalar `[]`. */
  crossEntropy(logits: Tensor, targets: Int32Array): Tensor;
}

/** How a token is drawn from logits. */
export interface Draw {
  /** Divides the logits; 0 takes the likeliest, the lowest id among equals. */
  readonly temperature: number;
  /** The fewest of the likeliest that have together more than this probability stay; 1 keeps all. */
  readonly topP: number;
  /** Those at least this part as likely as the likeliest stay. */
  readonly minP: number;
}

export interface LoadOptions {
  /** Called with bytes read so far and in all. */
  readonly onProgress?: (done: number, total: number) => void;
  readonly signal?: AbortSignal;
}

/** A step that has run, with all that it computed in. */
export interface Recording {
  /**
   * Runs it again in one go: with other tokens in the lookup that came first, other numbers in the tensors that `from` made, in
   * their order, and other segments, as long as the rows that they cover. Gives the numbers of its result where they are: they
   * hold until the next run, and may be changed.
   */
  run(tokens: Int32Array, numbers: readonly Float64Array[], segments: readonly Segment[]): Float32Array;
  close(): void;
}

export interface Backend extends Ops {
  readonly name: string;
  /** The way back, where the backend can be trained on. */
  readonly backward?: Backward;
  /** Copies numbers in. */
  from(data: Float32Array | Float64Array | Int32Array, shape: Shape): Tensor;
  /** Reads views of a checkpoint into memory, in the order of the file. Quantized tensors stay quantized where the backend can. */
  load(views: readonly TensorView[], options?: LoadOptions): Promise<Tensor[]>;
  kvPool(spec: KVPoolSpec): KVPool;
  /**
   * What `body` makes dies with it, but for the tensors in what it returns (a tensor, an array or a record of them).
   * `spent` dies too, once body is done, unless it is returned: a loop hands its state through without keeping every turn's.
   */
  scope<T>(body: () => Promise<T>, spent?: Tensor): Promise<T>;
  /**
   * The token that `u`, in [0, 1), draws: those that stay lie one behind the other in the order of their ids. Undefined where
   * the logits are broken, or of another kind; absent where a loop over them is as fast.
   */
  draw?(logits: Float32Array | Float64Array, how: Draw, u: number): number | undefined;
  /**
   * Runs a step and keeps what its operations did, to be run again without them; undefined where one of them cannot be.
   * What it made lives with the recording, its result, f32, too; the ids of its first lookup become the recording's. A step calls `from`
   * before its other operations, reads no numbers back, uses nothing from outside but weights and one pool of the cache for each
   * chunk, and nothing else runs on the backend meanwhile. Absent where nothing is saved by it.
   */
  record?(step: () => Promise<Tensor>): Promise<{ readonly result: Tensor; readonly recording: Recording | undefined }>;
  /** The only way numbers come back. They may be put into `into`, where that has room. */
  read(x: Tensor, into?: Float32Array): Promise<Float32Array | Float64Array>;
  close(): void;
}

/** What one step of AdamW needs to know beside the numbers. */
export interface AdamWStep {
  readonly rate: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  /** Decoupled weight decay: w shrinks by `rate · decay` of itself. */
  readonly decay: number;
  /** From 1 on: moments that began at 0 are made up for (bias correction). */
  readonly step: number;
  /** The gradient is multiplied by this first: clipping. */
  readonly scale: number;
}

/** What changes weights, in place: all else leaves tensors as they are. The tensors of a call have one shape, in f32 or f64. */
export interface Updates {
  /** m ← β₁m + (1−β₁)g, v ← β₂v + (1−β₂)g², w ← (1 − rate·decay)·w − rate·m̂ / (√v̂ + eps), m̂ = m/(1−β₁ᵗ), v̂ = v/(1−β₂ᵗ). */
  adamW(w: Tensor, g: Tensor, m: Tensor, v: Tensor, how: AdamWStep): void;
  /** x ← a·x + b·y */
  blend(x: Tensor, y: Tensor, a: number, b: number): void;
  /** Σ x². */
  sumSquares(x: Tensor): number;
}

/** A backend whose tensors can learn. */
export interface TrainingBackend extends Backend, Updates {}
