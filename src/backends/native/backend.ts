// The backend that computes in C++: buffers, shapes and scopes here, numbers in native/.
//
// T tokens · D dim · H query heads · K key/value heads · d head dim · E experts · F expert width · V vocabulary

import { availableParallelism } from "node:os";
import type {
  AdamWStep,
  Draw,
  Expert,
  ExpertBank,
  KVPool,
  KVPoolSpec,
  LoadOptions,
  Routes,
  Span,
  TrainingBackend,
} from "../../tensor/backend.ts";
import { type DType, dtypes, rowBytes } from "../../tensor/dtype.ts";
import { RequestError } from "../../tensor/errors.ts";
import { iqTables } from "../../tensor/iq-grids.ts";
import { elementCount, type Grid, type Shape, type Tensor, type TensorView } from "../../tensor/tensor.ts";
import {
  type Addon,
  type EngineHandle,
  type Isa,
  loadAddon,
  packedType,
  type RecordingHandle,
  roundedType,
} from "./addon.ts";
import { NativeBackward } from "./backward.ts";
import { NativePool, placesOf } from "./kv-pool.ts";
import { packable, packedBytes, readViews } from "./load.ts";
import { type Lease, Memory, type Place } from "./memory.ts";
import { type Inputs, NativeRecording } from "./recording.ts";
import { multiplyWalk, permuteWalk } from "./walk.ts";

export interface NativeOptions {
  /** Threads that compute; all cores when absent. Results do not depend on it. */
  readonly threads?: number;
  /**
   * "f32": float32 activations on exactly dequantized weights. "int8": activations are rounded to blocks of 32 int8
   * where weights are q8_0, q4_0, q4_k, q5_k or q6_k, which is several times faster, and to bf16 where weights are bf16
   * and the processor multiplies them (AVX512_BF16, twice as fast; AMX, ten times); other weights as with "f32".
   * "bf16": there, activations and weights of f32 and bf16, and gradients on the way back, are rounded to bf16 in every
   * product; sums stay float32. What training may take.
   */
  readonly activations?: "f32" | "int8" | "bf16";
  /** Forces an instruction set; else the environment's LLAMA4_ISA, else the best that the processor has. */
  readonly isa?: string;
}

/** What this machine can do at most, for judging what is reached. */
export interface Ceilings {
  readonly dramReadGBps: number;
  readonly int8Gops: number;
  readonly f32Gflops: number;
  readonly bf16Gflops: number;
}

export interface NativeBackend extends TrainingBackend {
  readonly isa: Isa;
  readonly threads: number;
  readonly activations: "f32" | "int8" | "bf16";
  /** Bytes of weights, caches and activations that it has asked of the system. */
  readonly heldBytes: number;
  /** Measures for about a second, with every thread. */
  ceilings(): Ceilings;
  /** Rows in the bytes of one dtype to another's, on all threads; the index of the first value it cannot hold, or -1. */
  recodeRows(from: DType, to: DType, columns: number, x: Uint8Array, out: Uint8Array): number;
  /** to[j][i] = from[i][j], on all threads; elements of 1, 2, 4 or 8 bytes. */
  transpose(elementBytes: number, rows: number, columns: number, from: Grid, to: Grid): void;
}

/** Opens the C++ backend. Throws when the addon does not load or the processor lacks the instruction set asked for. */
export function openNative(options: NativeOptions = {}): NativeBackend {
  return new Native(loadAddon(), options);
}

class Native implements NativeBackend {
  readonly name = "native";
  readonly isa: Isa;
  readonly threads: number;
  readonly activations: "f32" | "int8" | "bf16";
  readonly backward: NativeBackward;
  readonly #addon: Addon;
  readonly #engine: EngineHandle;
  readonly #memory: Memory;
  /** While a step is recorded. */
  #inputs: Inputs | undefined;

  constructor(addon: Addon, options: NativeOptions) {
    const { threads = availableParallelism(), activations = "int8", isa = process.env["LLAMA4_ISA"] } = options;
    this.isa = chooseIsa(addon.isas(), isa);
    this.threads = threads;
    this.activations = activations;
    this.#addon = addon;
    this.#engine = addon.open(threads, this.isa);
    addon.setCodebooks(iqTables.buffer, iqTables.byteOffset);
    this.#memory = new Memory(addon);
    this.backward = new NativeBackward({
      addon,
      engine: this.#engine,
      rounded: activations === "bf16",
      make: (shape) => this.#make(shape),
      floats: (x) => this.#floats(x),
      free: (x) => this.#free(x),
      attend: (q, k, v, span, lse) => this.#attend(q, k, v, span, lse),
    });
  }

  // --- memory ---

  #make(shape: Shape): Tensor & { data: Place } {
    return { shape, dtype: "f32", backend: this, data: this.#memory.lend(4 * elementCount(shape)) };
  }

  #free(x: Tensor): void {
    const { lease } = place(x);
    if (lease) this.#memory.end(lease);
  }

  /** The tensor's numbers as float32: where they are, or a decoded copy. */
  #floats(x: Tensor): Place {
    if (x.dtype === "f32") return place(x);
    const { buffer, at, packed } = place(x);
    const n = elementCount(x.shape);
    const out = this.#memory.lend(4 * n);
    // Matrix by matrix where they are packed, since each begins with a group of its own.
    const [O, I] = packed ? (x.shape.slice(-2) as [number, number]) : [1, n];
    const bytes = packed ? packedBytes(x.dtype, [O, I]) : 0;
    const all = this.#kept(Int32Array.from({ length: O }, (_, row) => row));
    for (let i = 0; i < n / (O * I); i++) {
      const [from, to] = [at + i * bytes, out.at + 4 * i * O * I];
      this.#addon.rows(this.#engine, O, I, typeOf(x), buffer, from, all, out.buffer, to);
    }
    return out;
  }

  /** An array whose numbers a call of the addon reads or writes where they are. */
  #kept(array: Int32Array): Int32Array {
    this.#inputs?.arrays.push(array);
    return array;
  }

  from(data: Float32Array | Float64Array | Int32Array, shape: Shape): Tensor {
    const y = this.#make(shape);
    const numbers = new Float32Array(y.data.buffer, y.data.at, elementCount(shape));
    numbers.set(data);
    this.#inputs?.numbers.push(numbers);
    return y;
  }

  async load(views: readonly TensorView[], options: LoadOptions = {}): Promise<Tensor[]> {
    const unique = [...new Set(views)];
    const packed = ({ dtype, shape }: TensorView) =>
      this.activations === "int8" && shape.length > 1 && packable.includes(dtype);
    const places = await readViews(this.#addon, this.#memory, unique, packed, options);
    const loaded = new Map<TensorView, Tensor>();
    for (const [i, view] of unique.entries())
      loaded.set(view, this.#weight(view, { ...places[i]!, packed: packed(view) }));
    return views.map((view) => loaded.get(view)!);
  }

  /** Vectors (norms, biases) become float32, which every operation takes as it stands; matrices stay as stored. */
  #weight({ dtype, shape }: TensorView, data: Place): Tensor {
    if (shape.length > 1 || dtype === "f32") return { shape, dtype, backend: this, data };
    const n = elementCount(shape);
    const floats = this.#memory.keep(4 * n);
    this.#addon.rows(this.#engine, 1, n, typeId(dtype), data.buffer, data.at, new Int32Array(1), floats, 0);
    return { shape, dtype: "f32", backend: this, data: { buffer: floats, at: 0 } satisfies Place };
  }

  async scope<T>(body: () => Promise<T>, spent?: Tensor): Promise<T> {
    return this.#memory.scope(body, leasesIn, spent && place(spent).lease);
  }

  draw(logits: Float32Array | Float64Array, { temperature, topP, minP }: Draw, u: number): number | undefined {
    if (!(logits instanceof Float32Array)) return undefined;
    const scale = temperature === 0 ? Infinity : Math.min(1 / temperature, 3e38); // finite as a float
    const token = this.#addon.draw(this.#engine, logits, scale, topP, minP, u);
    return token < 0 ? undefined : token;
  }

  async read(x: Tensor, into?: Float32Array): Promise<Float32Array> {
    const { buffer, at } = this.#floats(x);
    const numbers = new Float32Array(buffer, at, elementCount(x.shape));
    if (!into || into.length < numbers.length) return numbers.slice();
    into.set(numbers);
    return into.subarray(0, numbers.length);
  }

  kvPool(spec: KVPoolSpec): KVPool {
    return new NativePool(spec, this.#memory);
  }

  async record(step: () => Promise<Tensor>) {
    if (this.#inputs) throw new Error("a step was recorded while another one was; expected one at a time");
    const [addon, engine] = [this.#addon, this.#engine];
    const inputs: Inputs = { numbers: [], caches: new Map(), arrays: [] };
    let result: Tensor | undefined;
    let handle: RecordingHandle | null = null;
    const release = await this.#memory.apart(async () => {
      this.#inputs = inputs;
      addon.startRecording(engine);
      try {
        result = await step();
        return place(result).lease;
      } finally {
        this.#inputs = undefined;
        handle = addon.endRecording(engine);
      }
    });
    const { shape, data } = result!;
    const { buffer, at } = data as Place; // its memory is the recording's now
    const numbers = new Float32Array(buffer, at, elementCount(shape));
    if (handle) {
      const recording = new NativeRecording({ addon, engine }, handle, { inputs, result: numbers, release });
      return { result: { ...result!, data: { buffer, at } satisfies Place }, recording };
    }
    try {
      return { result: this.from(numbers, shape), recording: undefined };
    } finally {
      release();
    }
  }

  close(): void {
    this.#addon.close(this.#engine);
    this.#memory.close();
  }

  // --- operations ---

  embed(table: Tensor, ids: Int32Array): Tensor {
    if (this.#inputs) this.#inputs.tokens ??= ids;
    return this.rows(table, ids);
  }

  linear(x: Tensor, w: Tensor, b?: Tensor, exact = false): Tensor {
    const [T, I] = x.shape as [number, number];
    const [O] = w.shape as [number];
    const y = this.#make([T, O]);
    const [input, weight, bias] = [this.#floats(x), place(w), b && this.#floats(b)];
    this.#addon.linear(
      ...([
        this.#engine,
        T,
        I,
        O,
        exact ? typeOf(w) : factorType(w),
        input.buffer,
        input.at,
        weight.buffer,
        weight.at,
      ] as const),
      ...([bias?.buffer ?? null, bias?.at ?? 0, y.data.buffer, y.data.at] as const),
    );
    return y;
  }

  qkv(x: Tensor, ...weights: [wq: Tensor, wk: Tensor, wv: Tensor]): [Tensor, Tensor, Tensor] {
    const each = <T>(f: (w: Tensor) => T) => weights.map(f) as [T, T, T];
    if (!weights.every(isPacked)) return each((w) => this.linear(x, w));
    const [T, I] = x.shape as [number, number];
    const input = this.#floats(x);
    const ys = each(({ shape }) => this.#make([T, shape[0]!]));
    const product = (i: 0 | 1 | 2) => {
      const [w, y] = [place(weights[i]), ys[i].data];
      return [weights[i].shape[0]!, typeOf(weights[i]), w.buffer, w.at, y.buffer, y.at] as const;
    };
    const products = [...product(0), ...product(1), ...product(2)] as const;
    this.#addon.threeProducts(this.#engine, T, I, input.buffer, input.at, ...products);
    return ys;
  }

  feedForward(x: Tensor, gate: Tensor, up: Tensor, down: Tensor): Tensor {
    if (![gate, up, down].every(isPacked))
      return this.linear(this.swiglu(this.linear(x, gate), this.linear(x, up)), down);
    const [T, D] = x.shape as [number, number];
    const y = this.#make([T, D]);
    const input = this.#floats(x);
    this.#addon.feedForward(
      ...([this.#engine, T, D, gate.shape[0]!, input.buffer, input.at, y.data.buffer, y.data.at] as const),
      ...gated({ gate, up, down }),
    );
    return y;
  }

  add(a: Tensor, b: Tensor): Tensor {
    const y = this.#make(a.shape);
    const [p, q] = [this.#floats(a), this.#floats(b)];
    this.#addon.add(this.#engine, elementCount(a.shape), p.buffer, p.at, q.buffer, q.at, y.data.buffer, y.data.at);
    return y;
  }

  mul(a: Tensor, b: Tensor): Tensor {
    const y = this.#make(a.shape);
    const [p, q] = [this.#floats(a), this.#floats(b)];
    const walk = multiplyWalk(a.shape, b.shape);
    this.#addon.mul(this.#engine, walk, p.buffer, p.at, q.buffer, q.at, y.data.buffer, y.data.at);
    return y;
  }

  rmsNorm(x: Tensor, w: Tensor | null, eps: number): Tensor {
    const y = this.#make(x.shape);
    this.#addon.rmsNorm(this.#engine, ...lines(x), eps, ...this.#normBuffers(x, w, null, y));
    return y;
  }

  layerNorm(x: Tensor, w: Tensor, b: Tensor, eps: number): Tensor {
    const y = this.#make(x.shape);
    this.#addon.layerNorm(this.#engine, ...lines(x), eps, ...this.#normBuffers(x, w, b, y));
    return y;
  }

  #normBuffers(x: Tensor, w: Tensor | null, b: Tensor | null, y: Tensor & { data: Place }) {
    const [input, weight, bias] = [this.#floats(x), w && this.#floats(w), b && this.#floats(b)];
    const numbers = (p: Place | null) => [p?.buffer ?? null, p?.at ?? 0] as const;
    return [input.buffer, input.at, ...numbers(weight), ...numbers(bias), y.data.buffer, y.data.at] as const;
  }

  swiglu(gate: Tensor, up: Tensor): Tensor {
    const y = this.#make(gate.shape);
    const [g, u] = [this.#floats(gate), this.#floats(up)];
    this.#addon.swiglu(this.#engine, elementCount(y.shape), g.buffer, g.at, u.buffer, u.at, y.data.buffer, y.data.at);
    return y;
  }

  gelu(x: Tensor): Tensor {
    const y = this.#make(x.shape);
    const { buffer, at } = this.#floats(x);
    this.#addon.gelu(this.#engine, elementCount(x.shape), buffer, at, y.data.buffer, y.data.at);
    return y;
  }

  rope(x: Tensor, rotations: Tensor): Tensor {
    const [T, H, d] = x.shape as [number, number, number];
    const y = this.#make(x.shape);
    const [p, r] = [this.#floats(x), this.#floats(rotations)];
    this.#addon.rope(this.#engine, T, H, d, p.buffer, p.at, r.buffer, r.at, y.data.buffer, y.data.at);
    return y;
  }

  attend(q: Tensor, k: Tensor, v: Tensor, span: Span): Tensor {
    return this.#attend(q, k, v, span, null);
  }

  #attend(q: Tensor, k: Tensor, v: Tensor, span: Span, lse: Place | null): Tensor {
    const { segments, chunk = 0, causal = true, cache } = span;
    const [T, H, d] = q.shape as [number, number, number];
    const K = k.shape[1]!;
    const pool = cache?.pool as NativePool | undefined; // a cache is handed back to the backend that made its pool
    const { flat, tables } = placesOf(segments, chunk, cache);
    if (cache) this.#inputs?.caches.set(chunk, cache);
    const y = this.#make(q.shape);
    const [qs, ks, vs] = [this.#floats(q), this.#floats(k), this.#floats(v)];
    const layer = pool && cache ? pool.layerBytes * cache.layer : 0;
    const spec = pool?.spec;
    this.#addon.attend(
      ...([
        this.#engine,
        T,
        H,
        K,
        d,
        chunk,
        causal,
        pool !== undefined,
        spec?.blocks ?? 0,
        spec?.blockSize ?? 1,
      ] as const),
      ...([typeId(spec?.dtype ?? "f32"), qs.buffer, qs.at, ks.buffer, ks.at, vs.buffer, vs.at, flat, tables] as const),
      ...([pool?.keys ?? null, layer, pool?.values ?? null, layer, y.data.buffer, y.data.at] as const),
      ...([lse?.buffer ?? null, lse?.at ?? 0] as const),
    );
    return y;
  }

  route(logits: Tensor, topK: number): Routes {
    const [T, E] = logits.shape as [number, number];
    const experts = this.#kept(new Int32Array(T * topK));
    const scores = this.#make([T, topK]);
    const { buffer, at } = this.#floats(logits);
    this.#addon.route(this.#engine, T, E, topK, buffer, at, experts, scores.data.buffer, scores.data.at);
    return { topK, experts, scores };
  }

  async experts(x: Tensor, bank: ExpertBank, routes: Routes, shared?: Expert): Promise<Tensor> {
    const [E, F] = bank.gate.shape as [number, number];
    const all = [bank, shared].flatMap((e) => (e ? [e.gate, e.up, e.down] : []));
    if (shared && !(shared.gate.shape[0] === F && all.every(isPacked)))
      return this.add(this.feedForward(x, shared.gate, shared.up, shared.down), await this.experts(x, bank, routes));
    const [T, D] = x.shape as [number, number];
    const { topK, experts, scores } = routes;
    const y = this.#make([T, D]);
    const [input, s] = [this.#floats(x), this.#floats(scores)];
    this.#addon.experts(
      ...([this.#engine, T, D, F, E, topK, input.buffer, input.at, ...gated(bank)] as const),
      ...([this.#kept(experts), s.buffer, s.at, y.data.buffer, y.data.at] as const),
      ...(shared ? ([true, ...gated(shared)] as const) : ([false] as const)),
    );
    return y;
  }

  reshape(x: Tensor, shape: Shape): Tensor {
    return { ...x, shape };
  }

  permute(x: Tensor, order: readonly number[]): Tensor {
    const y = this.#make(order.map((axis) => x.shape[axis]!));
    const { buffer, at } = this.#floats(x);
    this.#addon.gather(this.#engine, permuteWalk(x.shape, order), buffer, at, y.data.buffer, y.data.at);
    return y;
  }

  rows(x: Tensor, at: Int32Array): Tensor {
    const [n, ...rest] = x.shape as [number, ...number[]];
    const y = this.#make([at.length, ...rest]);
    const from = place(x);
    this.#addon.rows(
      ...([
        this.#engine,
        n,
        elementCount(rest),
        typeOf(x),
        from.buffer,
        from.at,
        this.#kept(at),
        y.data.buffer,
        y.data.at,
      ] as const),
    );
    return y;
  }

  splice(x: Tensor, replacement: Tensor, at: Int32Array): Tensor {
    const [n, ...rest] = x.shape as [number, ...number[]];
    const y = this.#make(x.shape);
    const [p, r] = [this.#floats(x), this.#floats(replacement)];
    this.#addon.splice(
      ...([this.#engine, n, elementCount(rest), p.buffer, p.at, at, r.buffer, r.at, y.data.buffer, y.data.at] as const),
    );
    return y;
  }

  crossEntropy(logits: Tensor, targets: Int32Array): Tensor {
    const [T, V] = logits.shape as [number, number];
    const y = this.#make([]);
    const { buffer, at } = this.#floats(logits);
    this.#addon.crossEntropy(this.#engine, T, V, buffer, at, targets, y.data.buffer, y.data.at);
    return y;
  }

  // --- updates ---

  adamW(w: Tensor, g: Tensor, m: Tensor, v: Tensor, h: AdamWStep): void {
    const places = [w, g, m, v].map((x) => this.#own(x)) as [Place, Place, Place, Place];
    const [ws, gs, ms, vs] = places;
    this.#addon.adamW(
      ...([this.#engine, elementCount(w.shape), ws.buffer, ws.at, gs.buffer, gs.at] as const),
      ...([ms.buffer, ms.at, vs.buffer, vs.at, h.rate, h.beta1, h.beta2, h.eps, h.decay, h.step, h.scale] as const),
    );
  }

  blend(x: Tensor, y: Tensor, a: number, b: number): void {
    const [xs, ys] = [this.#own(x), this.#floats(y)];
    this.#addon.blend(this.#engine, elementCount(x.shape), xs.buffer, xs.at, ys.buffer, ys.at, a, b);
  }

  sumSquares(x: Tensor): number {
    const { buffer, at } = this.#floats(x);
    return this.#addon.sumSquares(this.#engine, elementCount(x.shape), buffer, at);
  }

  /** The tensor's own numbers, to be written to. */
  #own(x: Tensor): Place {
    if (x.dtype !== "f32") throw new RangeError(`a tensor of ${x.dtype} cannot be changed in place; expected f32`);
    return place(x);
  }

  // --- beside the operations ---

  get heldBytes(): number {
    return this.#memory.bytes;
  }

  ceilings(): Ceilings {
    const bytes = 256 * 2 ** 20; // beyond every cache
    const memory = this.#memory.keep(bytes);
    new Uint8Array(memory).fill(1); // untouched pages would all be the one zero page
    const [dram, int8, f32, bf16] = this.#addon.probe(this.#engine, bytes, memory, 0);
    this.#memory.drop(memory);
    return { dramReadGBps: dram / 1e9, int8Gops: int8 / 1e9, f32Gflops: f32 / 1e9, bf16Gflops: bf16 / 1e9 };
  }

  recodeRows(from: DType, to: DType, columns: number, x: Uint8Array, out: Uint8Array): number {
    const rows = x.length / rowBytes(from, columns);
    const places = [x.buffer as ArrayBuffer, x.byteOffset, out.buffer as ArrayBuffer, out.byteOffset] as const; // never shared memory
    return this.#addon.recode(this.#engine, typeId(from), typeId(to), rows, columns, ...places);
  }

  transpose(elementBytes: number, rows: number, columns: number, from: Grid, to: Grid): void {
    const strides = [from.stride * elementBytes, to.stride * elementBytes] as const;
    const place = ({ bytes, at }: Grid) => [bytes.buffer as ArrayBuffer, bytes.byteOffset + at * elementBytes] as const; // never shared memory
    this.#addon.transpose(this.#engine, elementBytes, rows, columns, ...strides, ...place(from), ...place(to));
  }
}

function chooseIsa(has: readonly Isa[], asked: string | undefined): Isa {
  if (!asked) return has[0]!;
  const isa = has.find((name) => name === asked);
  if (isa) return isa;
  throw new RequestError(
    `the instruction set asked for (LLAMA4_ISA or \`isa\`) is "${asked}"; this processor has ${has.join(", ")}`,
  );
}

function typeId(dtype: DType): number {
  return dtypes[dtype].ggmlType ?? 256; // only f8_e4m3 has no id in GGUF
}

/** The type as the addon takes it, with how the matrix is laid out. */
function typeOf(x: Tensor): number {
  return typeId(x.dtype) + (place(x).packed ? packedType : 0);
}

/** The same for products, with whether it and the rows that it meets may be rounded to bf16. */
function factorType(w: Tensor): number {
  const { activations } = w.backend as NativeBackend; // no other backend's come here
  const rounds = w.dtype === "bf16" ? activations !== "f32" : w.dtype === "f32" && activations === "bf16";
  return typeOf(w) + (rounds ? roundedType : 0);
}

const isPacked = (w: Tensor) => place(w).packed === true;

/** As the border takes them. */
function gated({ gate, up, down }: ExpertBank) {
  const [g, u, d] = [place(gate), place(up), place(down)];
  const types = [factorType(gate), factorType(up), factorType(down)] as const;
  return [...types, g.buffer, g.at, u.buffer, u.at, d.buffer, d.at] as const;
}

function place(x: Tensor): Place {
  const p = x.data as Place; // only this backend made it
  if (p.lease?.ended)
    throw new Error(`a tensor [${x.shape.join(", ")}] was used after its scope ended; return it from the scope`);
  return p;
}

/** Rows of the last axis: how many, how long. */
function lines(x: Tensor): [number, number] {
  const n = x.shape[x.shape.length - 1] ?? 1;
  return [n ? elementCount(x.shape) / n : 0, n];
}

/** The leases of the tensors in a tensor, an array or a record of them. */
function* leasesIn(value: unknown): Generator<Lease> {
  if (typeof value !== "object" || value === null || ArrayBuffer.isView(value)) return;
  if ("backend" in value && "data" in value) {
    const lease = (value as Tensor & { data: Place }).data.lease; // only tensors have both
    if (lease) yield lease;
  } else {
    for (const part of Array.isArray(value) ? value : Object.values(value)) yield* leasesIn(part);
  }
}
