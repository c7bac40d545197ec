// What native/addon.cc and native/reader.cc offer: the only description of the border. Sizes come first, then buffers,
// each as an ArrayBuffer and the byte where its numbers begin (`at`). A call that does not fit its buffers throws
// RangeError. Types are GGUF's ids (dtypes in tensor/dtype.ts), 256 for f8_e4m3; 1024 more for packed matrices, 2048 more
// for f32 and bf16 ones where they and the rows they meet may be rounded to bf16 (native/packed.h).

import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { EngineError } from "../../tensor/errors.ts";

export type Isa = "baseline" | "avx2" | "avx512" | "amx";

export const packedType = 1024; // kPacked of native/packed.h
export const roundedType = 2048; // kRounded of native/packed.h

/** Threads and the kernels chosen for them. One call at a time. */
export type EngineHandle = { readonly engine: unique symbol };
/** Its calls read and write the buffers and arrays that they were given: these must be there as long as it may run. */
export type RecordingHandle = { readonly recording: unique symbol };
export type ReadHandle = { readonly reading: unique symbol };

type Size = number;
type At = number;
type Buffer = ArrayBuffer;
type Place = [buffer: Buffer, at: At];
type PlaceOrNull = [buffer: Buffer | null, at: At];
type Gated = [gateType: number, upType: number, downType: number, ...gate: Place, ...up: Place, ...down: Place];
type Product = [O: Size, type: number, ...w: Place, ...y: Place];

export interface Addon {
  /** The instruction sets that this processor has, best first. */
  isas(): Isa[];
  open(threads: number, isa: string): EngineHandle;
  close(engine: EngineHandle): void;
  /** Memory outside JavaScript's heap, zero, aligned to 64 bytes below 4 GiB and to 16 above. */
  allocate(bytes: Size): Buffer;
  /** Gives the memory of `allocate` back and detaches the buffer. */
  release(buffer: Buffer): void;
  /** The tables of tensor/iq-grids.ts, once, before an i-quant or mxfp4 is read. */
  setCodebooks(tables: Buffer, at: At): void;
  /**
   * Rows of the type `from` to the type `to`. Returns the index of the first element that the type cannot hold, with
   * nothing of its row written; or -1.
   */
  recode(
    e: EngineHandle,
    from: number,
    to: number,
    rows: Size,
    columns: Size,
    x: Buffer,
    xAt: At,
    out: Buffer,
    outAt: At,
  ): number;
  /** out[column][row] = x[row][column], elements of 1, 2, 4 or 8 bytes; strides are bytes from row to row of each. */
  transpose(
    e: EngineHandle,
    elementBytes: Size,
    rows: Size,
    columns: Size,
    xStride: Size,
    outStride: Size,
    x: Buffer,
    xAt: At,
    out: Buffer,
    outAt: At,
  ): void;
  /** Bytes or operations a second of all threads: reading memory, int8, f32 and bf16 multiply-adds. */
  probe(e: EngineHandle, bytes: Size, memory: Buffer, at: At): [number, number, number, number];
  /**
   * Reads files on threads of its own. `units`: 9 numbers each, [file, offset, bytes, first scatter, scatters, rows,
   * bytes from row to row, bytes of an element, type]; `scatters`: 6 each, [buffer, offset, first column's byte in the row,
   * columns, bytes between neighbouring columns' places, and between rows']. With rows 0 the unit's bytes go to its one
   * scatter as they are; with a type its rows are packed; else each scatter takes its columns of every row, and one of
   * its strides is the element's.
   * onEvent(bytes done, finished, error) must not throw.
   */
  read(
    paths: readonly string[],
    units: Float64Array,
    scatters: Float64Array,
    buffers: readonly Buffer[],
    onEvent: (done: number, finished: boolean, error: string | null) => void,
  ): ReadHandle;
  cancel(reading: ReadHandle): void;

  /** `b` may be null. */
  linear(
    e: EngineHandle,
    ...args: [T: Size, I: Size, O: Size, type: number, ...x: Place, ...w: Place, ...b: PlaceOrNull, ...y: Place]
  ): void;
  /** Three matrices, all packed. */
  threeProducts(e: EngineHandle, T: Size, I: Size, ...args: [...x: Place, ...Product, ...Product, ...Product]): void;
  /** With a shared expert all are packed, and its sizes are those of the others. */
  experts(
    e: EngineHandle,
    ...args: [
      ...sizes: [T: Size, D: Size, F: Size, E: Size, topK: Size],
      ...x: Place,
      ...bank: Gated,
      chosen: Int32Array,
      ...scores: Place,
      ...y: Place,
      ...shared: [false] | [true, ...Gated],
    ]
  ): void;
  /** down · swiglu(gate · x, up · x), all three packed. */
  feedForward(
    e: EngineHandle,
    ...args: [...sizes: [T: Size, D: Size, F: Size], ...x: Place, ...y: Place, ...weights: Gated]
  ): void;
  /** Packs the rows of a matrix; `out` has room for whole groups of 16 rows. */
  pack(rows: Size, columns: Size, type: number, x: Buffer, xAt: At, out: Buffer, outAt: At): void;
  /** `segments`: 4 numbers each, [row, length, position, start of its block table in `tables`]. chunk 0: none. */
  attend(
    e: EngineHandle,
    ...args: [
      ...sizes: [T: Size, H: Size, K: Size, d: Size, chunk: Size],
      ...how: [causal: boolean, cached: boolean, blocks: Size, blockSize: Size, type: number],
      ...q: Place,
      ...k: Place,
      ...v: Place,
      segments: Int32Array,
      tables: Int32Array,
      ...keys: PlaceOrNull,
      ...values: PlaceOrNull,
      ...y: Place,
      ...lse: PlaceOrNull,
    ]
  ): void;
  rmsNorm(e: EngineHandle, rows: Size, n: Size, eps: number, ...args: NormBuffers): void;
  layerNorm(e: EngineHandle, rows: Size, n: Size, eps: number, ...args: NormBuffers): void;
  rope(
    e: EngineHandle,
    T: Size,
    H: Size,
    d: Size,
    x: Buffer,
    xAt: At,
    rotations: Buffer,
    rAt: At,
    y: Buffer,
    yAt: At,
  ): void;
  add(e: EngineHandle, n: Size, a: Buffer, aAt: At, b: Buffer, bAt: At, y: Buffer, yAt: At): void;
  swiglu(e: EngineHandle, n: Size, gate: Buffer, gateAt: At, up: Buffer, upAt: At, y: Buffer, yAt: At): void;
  gelu(e: EngineHandle, n: Size, x: Buffer, xAt: At, y: Buffer, yAt: At): void;
  /** `walk`: extent and b's stride (in elements, 0 where b has one) for each axis; the last stride is 0 or 1. */
  mul(e: EngineHandle, walk: Int32Array, a: Buffer, aAt: At, b: Buffer, bAt: At, y: Buffer, yAt: At): void;
  /** `walk`: extent and x's stride for each axis of y. */
  gather(e: EngineHandle, walk: Int32Array, x: Buffer, xAt: At, y: Buffer, yAt: At): void;
  rows(
    e: EngineHandle,
    rows: Size,
    width: Size,
    type: number,
    table: Buffer,
    tableAt: At,
    at: Int32Array,
    y: Buffer,
    yAt: At,
  ): void;
  splice(
    e: EngineHandle,
    rows: Size,
    width: Size,
    x: Buffer,
    xAt: At,
    at: Int32Array,
    from: Buffer,
    fromAt: At,
    y: Buffer,
    yAt: At,
  ): void;
  /** Fills `chosen`. */
  route(
    e: EngineHandle,
    T: Size,
    E: Size,
    topK: Size,
    logits: Buffer,
    at: At,
    chosen: Int32Array,
    scores: Buffer,
    scoresAt: At,
  ): void;
  /** What runs from here on is kept, beside being run: until `endRecording`. */
  startRecording(e: EngineHandle): void;
  /** What ran since; null where a call was among it that cannot run again: only those of a step's forward pass can. */
  endRecording(e: EngineHandle): RecordingHandle | null;
  /** Runs it again, for each kind of layers, by its chunk, with these segments and tables, as `attend` takes them. */
  replay(e: EngineHandle, recording: RecordingHandle, ...kinds: (number | Int32Array)[]): void;
  /** A token; -1 where a logit is NaN or infinite, or all are -Infinity. The largest logit's where `scale` is Infinity. */
  draw(e: EngineHandle, logits: Float32Array, scale: number, topP: number, minP: number, u: number): number;
  crossEntropy(
    e: EngineHandle,
    T: Size,
    V: Size,
    logits: Buffer,
    at: At,
    targets: Int32Array,
    y: Buffer,
    yAt: At,
  ): void;
  /** In place: w, m and v. */
  adamW(
    e: EngineHandle,
    n: Size,
    ...args: [
      ...w: Place,
      ...g: Place,
      ...m: Place,
      ...v: Place,
      ...how: [rate: number, beta1: number, beta2: number, eps: number, decay: number, step: number, scale: number],
    ]
  ): void;
  /** x ← a·x + b·y */
  blend(e: EngineHandle, n: Size, x: Buffer, xAt: At, y: Buffer, yAt: At, a: number, b: number): void;
  sumSquares(e: EngineHandle, n: Size, x: Buffer, at: At): number;

  // The way back (tensor/backward.ts). `starts`: where each group of rows begins, and where the last ends.
  groupedLinear(
    e: EngineHandle,
    ...args: [
      ...sizes: [N: Size, I: Size, O: Size, type: number],
      ...x: Place,
      starts: Int32Array,
      ...bank: Place,
      ...y: Place,
    ]
  ): void;
  linearInput(
    e: EngineHandle,
    ...args: [
      ...sizes: [N: Size, I: Size, O: Size],
      ...dy: Place,
      starts: Int32Array,
      rounded: boolean,
      ...w: Place,
      ...dx: Place,
    ]
  ): void;
  linearWeight(
    e: EngineHandle,
    ...args: [
      ...sizes: [N: Size, I: Size, O: Size],
      ...dy: Place,
      starts: Int32Array,
      rounded: boolean,
      ...x: Place,
      ...dw: Place,
    ]
  ): void;
  rmsNormBackward(e: EngineHandle, rows: Size, n: Size, eps: number, ...args: NormBackwardBuffers): void;
  layerNormBackward(e: EngineHandle, rows: Size, n: Size, eps: number, ...args: NormBackwardBuffers): void;
  swigluBackward(
    e: EngineHandle,
    n: Size,
    ...args: [...gate: Place, ...up: Place, ...dy: Place, ...dGate: Place, ...dUp: Place]
  ): void;
  geluBackward(e: EngineHandle, n: Size, ...args: [...x: Place, ...dy: Place, ...dx: Place]): void;
  attendBackward(
    e: EngineHandle,
    ...args: [
      ...sizes: [T: Size, H: Size, K: Size, d: Size, chunk: Size],
      causal: boolean,
      ...q: Place,
      ...k: Place,
      ...v: Place,
      ...y: Place,
      ...lse: Place,
      ...dy: Place,
      segments: Int32Array,
      ...dq: Place,
      ...dk: Place,
      ...dv: Place,
    ]
  ): void;
  scores(
    e: EngineHandle,
    ...args: [T: Size, E: Size, topK: Size, ...logits: Place, chosen: Int32Array, ...y: Place]
  ): void;
  scoresBackward(
    e: EngineHandle,
    ...args: [T: Size, E: Size, topK: Size, ...logits: Place, chosen: Int32Array, ...dy: Place, ...dx: Place]
  ): void;
  crossEntropyBackward(
    e: EngineHandle,
    ...args: [T: Size, V: Size, ...logits: Place, targets: Int32Array, ...dy: Place, ...dx: Place]
  ): void;
  /** `shares`: E doubles. */
  routerLoss(
    e: EngineHandle,
    ...args: [T: Size, E: Size, balance: number, z: number, ...shares: Place, ...logits: Place, ...y: Place]
  ): void;
  routerLossBackward(
    e: EngineHandle,
    ...args: [
      ...[T: Size, E: Size, balance: number, z: number],
      ...shares: Place,
      ...logits: Place,
      ...dy: Place,
      ...dx: Place,
    ]
  ): void;
  scatterRows(e: EngineHandle, ...args: [n: Size, width: Size, at: Int32Array, ...x: Place, ...y: Place]): void;
  /** `kept`, `summed`: extent and x's stride for each axis of y, and for each that is added up. */
  sumAxes(e: EngineHandle, kept: Int32Array, summed: Int32Array, ...args: [...x: Place, ...y: Place]): void;
}

type NormBackwardBuffers = [
  ...x: Place,
  ...w: PlaceOrNull,
  ...dy: Place,
  ...dx: Place,
  ...dw: PlaceOrNull,
  ...db: PlaceOrNull,
];

type NormBuffers = [...x: Place, ...w: PlaceOrNull, ...b: PlaceOrNull, ...y: Place];

/** Loads the compiled addon. Its error names every path that was tried, and what to install. */
export function loadAddon(): Addon {
  // seen from here, or from dist/worker.js, which this file is a part of there
  const built = ["../../..", ".."].map((root) =>
    fileURLToPath(new URL(`${root}/native/build/llama4.node`, import.meta.url)),
  );
  const paths = process.env["LLAMA4_ADDON"] ? [process.env["LLAMA4_ADDON"]] : [built.find(existsSync) ?? built[0]!];
  const failures: string[] = [];
  for (const path of paths) {
    if (!existsSync(path)) {
      failures.push(`${path}: no such file`);
      continue;
    }
    try {
      return createRequire(import.meta.url)(path) as Addon; // its types are those above, by hand
    } catch (error) {
      failures.push(`${path}: ${error instanceof Error ? error.message : error}`);
    }
  }
  throw new EngineError(
    `the native backend did not load (${failures.join("; ")}); ` +
      "install a C++17 compiler (Debian, Ubuntu: apt-get install g++; macOS: xcode-select --install), then npm run build",
  );
}
