// The specification: every operation as its shortest correct loops. Numbers are stored in f32 (or f64, to test
// gradients and accuracy) and summed in f64. It is never made faster.
//
// T tokens · D dim · H query heads · K key/value heads · d head dim · E experts · F expert width · V vocabulary

import {
  type AdamWStep,
  type Expert,
  type ExpertBank,
  type KVDType,
  type KVPool,
  type KVPoolSpec,
  type LayerCache,
  type LoadOptions,
  type Routes,
  type Segment,
  type Span,
  slotBytes,
  type TrainingBackend,
} from "../../tensor/backend.ts";
import { dequantize } from "../../tensor/block-formats.ts";
import { rowBytes } from "../../tensor/dtype.ts";
import { quantize } from "../../tensor/quantize.ts";
import { elementCount, type Shape, storedBytes, type Tensor, type TensorView } from "../../tensor/tensor.ts";
import { ReferenceBackward } from "./backward.ts";
import { decode } from "./decode.ts";
import { broadcastIndex, dot, erf, matrix, type Numbers, numbers, seenRows, sigmoid, softmax } from "./numbers.ts";

export interface ReferenceOptions {
  readonly precision?: "f32" | "f64";
}

/** Opens the plain TypeScript backend: slow, and right by inspection. */
export function openReference({ precision = "f32" }: ReferenceOptions = {}): TrainingBackend {
  return new Reference(precision);
}

class Reference implements TrainingBackend {
  readonly name = "reference";
  readonly backward: ReferenceBackward;
  readonly #dtype: "f32" | "f64";

  constructor(dtype: "f32" | "f64") {
    this.#dtype = dtype;
    this.backward = new ReferenceBackward(this, (n) => this.#zeros(n));
  }

  #zeros(n: number): Numbers {
    return this.#dtype === "f32" ? new Float32Array(n) : new Float64Array(n);
  }

  #tensor(shape: Shape, data: Numbers): Tensor {
    return { shape, dtype: this.#dtype, backend: this, data };
  }

  #make(shape: Shape, value: (i: number) => number): Tensor {
    const data = this.#zeros(elementCount(shape));
    for (let i = 0; i < data.length; i++) data[i] = value(i);
    return this.#tensor(shape, data);
  }

  from(data: Numbers | Int32Array, shape: Shape): Tensor {
    return this.#make(shape, (i) => data[i]!);
  }

  async load(views: readonly TensorView[], { onProgress, signal }: LoadOptions = {}): Promise<Tensor[]> {
    const loaded = new Map<TensorView, Tensor>();
    const unique = [...new Set(views)];
    const total = unique.reduce((sum, view) => sum + storedBytes(view), 0);
    let done = 0;
    for (const view of unique) {
      signal?.throwIfAborted();
      const data = this.#zeros(elementCount(view.shape));
      await decode(view, data);
      loaded.set(view, this.#tensor(view.shape, data));
      done += storedBytes(view);
      onProgress?.(done, total);
    }
    return views.map((view) => loaded.get(view)!);
  }

  async scope<T>(body: () => Promise<T>): Promise<T> {
    return body(); // the garbage collector does the rest
  }

  async read(x: Tensor): Promise<Numbers> {
    return numbers(x).slice();
  }

  close(): void {}

  embed(table: Tensor, ids: Int32Array): Tensor {
    return this.rows(table, ids);
  }

  linear(x: Tensor, w: Tensor, b?: Tensor): Tensor {
    const [a, m] = [numbers(x), numbers(w)];
    const [T, I] = x.shape as [number, number];
    const [O] = w.shape as [number];
    return this.#make([T, O], (i) => {
      const t = Math.floor(i / O);
      const o = i % O;
      return dot(a, t * I, m, o * I, I) + (b ? numbers(b)[o]! : 0);
    });
  }

  add(a: Tensor, b: Tensor): Tensor {
    return this.#make(a.shape, (i) => numbers(a)[i]! + numbers(b)[i]!);
  }

  mul(a: Tensor, b: Tensor): Tensor {
    const [x, y] = [numbers(a), numbers(b)];
    return this.#make(a.shape, (i) => x[i]! * y[broadcastIndex(a.shape, b.shape, i)]!);
  }

  rmsNorm(x: Tensor, w: Tensor | null, eps: number): Tensor {
    const a = numbers(x);
    const n = x.shape[x.shape.length - 1]!;
    const out = this.#zeros(a.length);
    for (let at = 0; at < a.length; at += n) {
      const scale = 1 / Math.sqrt(dot(a, at, a, at, n) / n + eps);
      for (let i = 0; i < n; i++) out[at + i] = a[at + i]! * scale * (w ? numbers(w)[i]! : 1);
    }
    return this.#tensor(x.shape, out);
  }

  layerNorm(x: Tensor, w: Tensor, b: Tensor, eps: number): Tensor {
    const a = numbers(x);
    const n = x.shape[x.shape.length - 1]!;
    const out = this.#zeros(a.length);
    for (let at = 0; at < a.length; at += n) {
      let mean = 0;
      let variance = 0;
      for (let i = 0; i < n; i++) mean += a[at + i]! / n;
      for (let i = 0; i < n; i++) variance += (a[at + i]! - mean) ** 2 / n;
      const scale = 1 / Math.sqrt(variance + eps);
      for (let i = 0; i < n; i++) out[at + i] = (a[at + i]! - mean) * scale * numbers(w)[i]! + numbers(b)[i]!;
    }
    return this.#tensor(x.shape, out);
  }

  swiglu(gate: Tensor, up: Tensor): Tensor {
    return this.#make(gate.shape, (i) => numbers(gate)[i]! * sigmoid(numbers(gate)[i]!) * numbers(up)[i]!);
  }

  gelu(x: Tensor): Tensor {
    return this.#make(x.shape, (i) => (numbers(x)[i]! * (1 + erf(numbers(x)[i]! / Math.SQRT2))) / 2);
  }

  qkv(x: Tensor, ...weights: [wq: Tensor, wk: Tensor, wv: Tensor]): [Tensor, Tensor, Tensor] {
    return weights.map((w) => this.linear(x, w)) as [Tensor, Tensor, Tensor];
  }

  feedForward(x: Tensor, gate: Tensor, up: Tensor, down: Tensor): Tensor {
    return this.linear(this.swiglu(this.linear(x, gate), this.linear(x, up)), down);
  }

  rope(x: Tensor, rotations: Tensor): Tensor {
    const [a, r] = [numbers(x), numbers(rotations)];
    const [, H, d] = x.shape as [number, number, number];
    return this.#make(x.shape, (i) => {
      const pair = i - (i % 2);
      const turn = Math.floor(i / (H * d)) * d + (pair % d); // (cos, sin) of this token's pair
      const [cos, sin] = [r[turn]!, r[turn + 1]!];
      return i === pair ? a[pair]! * cos - a[pair + 1]! * sin : a[pair]! * sin + a[pair + 1]! * cos;
    });
  }

  attend(q: Tensor, k: Tensor, v: Tensor, span: Span): Tensor {
    const [, H, d] = q.shape as [number, number, number];
    const K = k.shape[1]!;
    const out = this.#zeros(elementCount(q.shape));
    for (const segment of span.segments) {
      if (span.cache) writeCache(k, v, segment, span.cache, span.chunk);
      for (let t = 0; t < segment.length; t++) {
        const keys = visible(k, v, segment, t, span);
        for (let h = 0; h < H; h++) {
          const head = Math.floor((h * K) / H) * d;
          const row = ((segment.row + t) * H + h) * d;
          const scores = keys.map((key) => dot(numbers(q), row, key.k, key.at + head, d) / Math.sqrt(d));
          const weights = softmax(scores);
          for (let i = 0; i < d; i++) {
            let mix = 0;
            for (const [n, key] of keys.entries()) mix += weights[n]! * key.v[key.at + head + i]!;
            out[row + i] = mix;
          }
        }
      }
    }
    return this.#tensor(q.shape, out);
  }

  route(logits: Tensor, topK: number): Routes {
    const a = numbers(logits);
    const [T, E] = logits.shape as [number, number];
    const chosen = new Int32Array(T * topK);
    for (let t = 0; t < T; t++) {
      const order = Array.from({ length: E }, (_, e) => e).sort((e, f) => a[t * E + f]! - a[t * E + e]! || e - f);
      chosen.set(order.slice(0, topK), t * topK);
    }
    const score = (i: number) => sigmoid(a[Math.floor(i / topK) * E + chosen[i]!]!);
    return { topK, experts: chosen, scores: this.#make([T, topK], score) };
  }

  async experts(x: Tensor, bank: ExpertBank, routes: Routes, shared?: Expert): Promise<Tensor> {
    if (shared)
      return this.add(this.feedForward(x, shared.gate, shared.up, shared.down), await this.experts(x, bank, routes));
    const { topK, experts, scores } = routes;
    const [T, D] = x.shape as [number, number];
    const out = this.#zeros(T * D);
    for (let i = 0; i < T * topK; i++) {
      const t = Math.floor(i / topK);
      const e = experts[i]!;
      const input = this.#make([1, D], (j) => numbers(scores)[i]! * numbers(x)[t * D + j]!);
      const y = numbers(this.feedForward(input, matrix(bank.gate, e), matrix(bank.up, e), matrix(bank.down, e)));
      for (let j = 0; j < D; j++) out[t * D + j]! += y[j]!;
    }
    return this.#tensor([T, D], out);
  }

  reshape(x: Tensor, shape: Shape): Tensor {
    return this.#tensor(shape, numbers(x));
  }

  permute(x: Tensor, order: readonly number[]): Tensor {
    const strides = x.shape.map((_, axis) => elementCount(x.shape.slice(axis + 1)));
    const shape = order.map((axis) => x.shape[axis]!);
    return this.#make(shape, (i) => {
      let from = 0;
      for (let axis = shape.length - 1; axis >= 0; axis--) {
        from += (i % shape[axis]!) * strides[order[axis]!]!;
        i = Math.floor(i / shape[axis]!);
      }
      return numbers(x)[from]!;
    });
  }

  rows(x: Tensor, at: Int32Array): Tensor {
    const width = elementCount(x.shape.slice(1));
    return this.#make(
      [at.length, ...x.shape.slice(1)],
      (i) => numbers(x)[at[Math.floor(i / width)]! * width + (i % width)]!,
    );
  }

  splice(x: Tensor, replacement: Tensor, at: Int32Array): Tensor {
    const width = elementCount(x.shape.slice(1));
    const out = numbers(x).slice();
    for (const [i, row] of at.entries())
      out.set(numbers(replacement).subarray(i * width, (i + 1) * width), row * width);
    return this.#tensor(x.shape, out);
  }

  crossEntropy(logits: Tensor, targets: Int32Array): Tensor {
    const V = logits.shape[1]!;
    let loss = 0;
    let counted = 0;
    for (const [t, target] of targets.entries()) {
      if (target < 0) continue;
      const row = [...numbers(logits).subarray(t * V, (t + 1) * V)];
      const top = row.reduce((a, b) => Math.max(a, b), -Infinity);
      let sum = 0;
      for (const logit of row) sum += Math.exp(logit - top);
      loss += Math.log(sum) + top - row[target]!;
      counted++;
    }
    return this.#make([], () => loss / counted);
  }

  adamW(w: Tensor, g: Tensor, m: Tensor, v: Tensor, h: AdamWStep): void {
    const [ws, gs, ms, vs] = [numbers(w), numbers(g), numbers(m), numbers(v)];
    for (let i = 0; i < ws.length; i++) {
      const gradient = gs[i]! * h.scale;
      ms[i] = h.beta1 * ms[i]! + (1 - h.beta1) * gradient;
      vs[i] = h.beta2 * vs[i]! + (1 - h.beta2) * gradient ** 2;
      const mean = ms[i]! / (1 - h.beta1 ** h.step);
      const square = vs[i]! / (1 - h.beta2 ** h.step);
      ws[i] = ws[i]! * (1 - h.rate * h.decay) - (h.rate * mean) / (Math.sqrt(square) + h.eps);
    }
  }

  blend(x: Tensor, y: Tensor, a: number, b: number): void {
    const [xs, ys] = [numbers(x), numbers(y)];
    for (let i = 0; i < xs.length; i++) xs[i] = a * xs[i]! + b * ys[i]!;
  }

  sumSquares(x: Tensor): number {
    return dot(numbers(x), 0, numbers(x), 0, numbers(x).length);
  }

  kvPool(spec: KVPoolSpec): KVPool {
    return new ReferencePool(spec, (n) => this.#zeros(n));
  }
}

/** Slots of a layer stand in block order: slot s of block b at `(b · blockSize + s) · K · d`; rounded, not packed. */
class ReferencePool implements KVPool {
  readonly spec: KVPoolSpec;
  readonly blockBytes: number;
  readonly keys: readonly Numbers[];
  readonly values: readonly Numbers[];

  constructor(spec: KVPoolSpec, zeros: (n: number) => Numbers) {
    this.spec = spec;
    slotBytes(spec); // throws where the dtype cannot hold a head
    const layer = () => zeros(spec.blocks * this.#block);
    this.keys = Array.from({ length: spec.layers }, layer);
    this.values = Array.from({ length: spec.layers }, layer);
    this.blockBytes = 2 * spec.layers * this.#block * zeros(0).BYTES_PER_ELEMENT;
  }

  get #block(): number {
    return this.spec.blockSize * this.spec.heads * this.spec.headDim;
  }

  copy(from: number, to: number): void {
    for (const layer of [...this.keys, ...this.values]) {
      layer.copyWithin(to * this.#block, from * this.#block, (from + 1) * this.#block);
    }
  }

  close(): void {}
}

function slotOffset(cache: LayerCache, sequence: number, slot: number): number {
  const { blockSize, heads, headDim } = cache.pool.spec;
  return (cache.table(sequence)[Math.floor(slot / blockSize)]! * blockSize + (slot % blockSize)) * heads * headDim;
}

/** Slot of position p: p, or p mod chunk. */
function writeCache(k: Tensor, v: Tensor, segment: Segment, cache: LayerCache, chunk = Infinity): void {
  const pool = cache.pool as ReferencePool; // a cache is handed back to the backend that made its pool
  const width = elementCount(k.shape.slice(1));
  for (let t = 0; t < segment.length; t++) {
    const at = slotOffset(cache, segment.sequence, (segment.position + t) % chunk);
    const row = (segment.row + t) * width;
    const { dtype } = pool.spec;
    pool.keys[cache.layer]!.set(rounded(numbers(k).subarray(row, row + width), dtype), at);
    pool.values[cache.layer]!.set(rounded(numbers(v).subarray(row, row + width), dtype), at);
  }
}

/** What a cache of the dtype keeps of numbers; f32 leaves them as they are. */
function rounded(x: Numbers, dtype: KVDType): Numbers {
  if (dtype === "f32") return x;
  const bytes = new Uint8Array(rowBytes(dtype, x.length));
  quantize(dtype, Float32Array.from(x), bytes);
  const kept = new Float32Array(x.length);
  dequantize(dtype, bytes, kept);
  return kept;
}

interface Key {
  readonly k: Numbers;
  readonly v: Numbers;
  readonly at: number;
}

/** The keys and values that token t of the segment sees, oldest first. */
function visible(k: Tensor, v: Tensor, segment: Segment, t: number, span: Span): Key[] {
  const { chunk, cache } = span;
  if (cache) {
    const p = segment.position + t;
    const first = chunk ? p - (p % chunk) : 0;
    const pool = cache.pool as ReferencePool; // as above
    const [keys, values] = [pool.keys[cache.layer]!, pool.values[cache.layer]!];
    return Array.from({ length: p - first + 1 }, (_, slot) => ({
      k: keys,
      v: values,
      at: slotOffset(cache, segment.sequence, slot),
    }));
  }
  const width = elementCount(k.shape.slice(1));
  const [first, last] = seenRows(segment, t, span);
  return Array.from({ length: last - first + 1 }, (_, i) => ({
    k: numbers(k),
    v: numbers(v),
    at: (first + i) * width,
  }));
}
