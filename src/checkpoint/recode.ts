// A tensor of a checkpoint as bytes of another dtype or the other way around, a few MiB at a time: while a block is
// recoded, the next one is being read and the one before written.

import { dequantize } from "../tensor/block-formats.ts";
import { type DType, dtypes, rowBytes } from "../tensor/dtype.ts";
import { CheckpointError } from "../tensor/errors.ts";
import { isQuantizable, quantize } from "../tensor/quantize.ts";
import { elementCount, type Grid, type TensorView } from "../tensor/tensor.ts";

/** What recoding computes with: native code, or plain TypeScript. */
export interface Quantizer {
  /**
   * Every row of `columns` elements in the bytes of `from` becomes one of `to` in `out`. The index of the first element
   * that `to` cannot hold, or -1.
   */
  recodeRows(from: DType, to: DType, columns: number, x: Uint8Array, out: Uint8Array): number;
  /** to[j][i] = from[i][j] for `rows` × `columns` elements of `from`. */
  transpose(elementBytes: number, rows: number, columns: number, from: Grid, to: Grid): void;
}

/** In plain TypeScript: the same bytes as native code, hundreds of times slower. */
export const referenceQuantizer: Quantizer = {
  recodeRows(from, to, columns, x, out) {
    const values = new Float32Array((x.length / rowBytes(from, columns)) * columns);
    dequantize(from, x, values);
    if (!isQuantizable(to)) throw new RangeError(`nothing writes ${to}`);
    if (to !== "f32" && to !== "bf16") {
      const bad = values.findIndex((value) => !(Math.abs(value) < 65520)); // as quantize
      if (bad >= 0) return bad;
    }
    quantize(to, values, out);
    return -1;
  },
  transpose(size, rows, columns, from, to) {
    for (let i = 0; i < rows; i++)
      for (let j = 0; j < columns; j++) {
        const source = (from.at + i * from.stride + j) * size;
        const target = (to.at + j * to.stride + i) * size;
        for (let b = 0; b < size; b++) to.bytes[target + b] = from.bytes[source + b]!;
      }
  },
};

const blockBytes = 8 * 2 ** 20; // of what is read at once: several such blocks are in memory
const mostRows = 1 << 16; // of a block, for tensors with very short rows
const turnedBytes = 256 * 2 ** 20; // of what is transposed in memory: more than an expert of Scout or Maverick, 168 MB

/** The bytes of a view, row-major, as `dtype`. Throws CheckpointError for an element that `dtype` cannot hold. */
export function recoded(view: TensorView, dtype: DType, quantizer: Quantizer): AsyncGenerator<Uint8Array> {
  if (isTransposed(view)) return only(recodedTogether([view], [dtype], quantizer));
  return oneAhead(recodedBlocks(rowMajor(view), view, dtype, quantizer));
}

/**
 * The bytes of views that are transposed out of the same rows of a source, as gate and up in Hugging Face's fused
 * experts, each as its own dtype. What is read once gives all: a block is the index of its view, and the next bytes of it.
 */
export function recodedTogether(
  views: readonly TensorView[],
  targets: readonly DType[],
  quantizer: Quantizer,
): AsyncGenerator<readonly [view: number, bytes: Uint8Array]> {
  const [view] = views;
  if (views.length > 1 || isTransposed(view!)) return oneAhead(transposed(views, targets, quantizer));
  return numbered(recoded(view!, targets[0]!, quantizer));
}

/** True where `recodedTogether` takes the two. */
export function shareRows(a: TensorView, b: TensorView): boolean {
  return (
    isTransposed(a) &&
    a.source === b.source &&
    a.dtype === b.dtype &&
    a.shape.join() === b.shape.join() &&
    a.strides.join() === b.strides?.join() &&
    Math.abs(a.offset - b.offset) < a.strides.at(-1)! * dtypes[a.dtype].blockBytes
  );
}

async function* numbered(blocks: AsyncGenerator<Uint8Array>): AsyncGenerator<readonly [number, Uint8Array]> {
  for await (const bytes of blocks) yield [0, bytes];
}

async function* only(blocks: AsyncGenerator<readonly [number, Uint8Array]>): AsyncGenerator<Uint8Array> {
  for await (const [, bytes] of blocks) yield bytes;
}

async function* recodedBlocks(
  blocks: AsyncIterable<Uint8Array>,
  view: TensorView,
  dtype: DType,
  quantizer: Quantizer,
): AsyncGenerator<Uint8Array> {
  const columns = view.shape.at(-1) ?? 1;
  let done = 0; // elements
  for await (const bytes of blocks) {
    const n = (bytes.length / dtypes[view.dtype].blockBytes) * dtypes[view.dtype].blockElements;
    yield view.dtype === dtype ? bytes : recode(view, dtype, columns, bytes, done, quantizer);
    done += n;
  }
}

function recode(
  view: TensorView,
  dtype: DType,
  columns: number,
  bytes: Uint8Array,
  first: number,
  quantizer: Quantizer,
): Uint8Array {
  const rows = bytes.length / rowBytes(view.dtype, columns);
  const out = new Uint8Array(rows * rowBytes(dtype, columns));
  const bad = quantizer.recodeRows(view.dtype, dtype, columns, bytes, out);
  if (bad < 0) return out;
  const value = new Float32Array(rows * columns);
  dequantize(view.dtype, bytes, value);
  throw new CheckpointError(
    `${view.name}: element ${first + bad} is ${value[bad]}, which ${dtype} cannot hold; convert to bf16 or f32`,
  );
}

/** The bytes of a view in its own dtype, whole rows at a time; its rows may have gaps between them. */
async function* rowMajor(view: TensorView): AsyncGenerator<Uint8Array> {
  const columns = view.shape.at(-1) ?? 1;
  const row = rowBytes(view.dtype, columns);
  if (!view.strides) {
    const rows = row === 0 ? 0 : elementCount(view.shape) / columns;
    const atOnce = Math.min(mostRows, Math.max(1, Math.floor(blockBytes / row)));
    yield* reads(view, rows, row, atOnce, 0, row);
    return;
  }
  if (!isRows(view)) throw new RangeError(`${view.name}: a view with no stride of 1`);
  for (const { source, offset, rows, rowStride } of matrices(view)) {
    const stride = rowStride * dtypes[view.dtype].blockBytes;
    const atOnce = Math.min(mostRows, Math.max(1, Math.floor(blockBytes / stride)));
    for await (const bytes of reads({ source, offset }, rows, stride, atOnce, 0, row)) {
      const n = (bytes.length - row) / stride + 1;
      const out = new Uint8Array(n * row);
      for (let i = 0; i < n; i++) out.set(bytes.subarray(i * stride, i * stride + row), i * row);
      yield out;
    }
  }
}

/** Ranges of a source one after the other, the next one on its way: `used` bytes and more of `atOnce` rows, `skip` left out. */
async function* reads(
  { source, offset }: Pick<TensorView, "source" | "offset">,
  rows: number,
  stride: number,
  atOnce: number,
  skip: number,
  used: number,
): AsyncGenerator<Uint8Array> {
  const read = (row: number) => {
    const n = Math.min(atOnce, rows - row);
    const bytes = source.read(offset + row * stride + skip, (n - 1) * stride + used);
    bytes.catch(() => {}); // reported when it is awaited, if it still is
    return bytes;
  };
  if (rows === 0) return;
  let next = read(0);
  for (let row = 0; row < rows; row += atOnce) {
    const bytes = await next;
    if (row + atOnce < rows) next = read(row + atOnce);
    yield bytes;
  }
}

interface Matrix {
  readonly source: TensorView["source"];
  readonly offset: number;
  readonly rows: number;
  readonly columns: number;
  /** In elements. */
  readonly rowStride: number;
  readonly columnStride: number;
}

type Strided = TensorView & { readonly strides: readonly number[] };

function matrices({ name, dtype, shape: extents, source, offset, strides: steps = [] }: TensorView): Matrix[] {
  if (extents.length > 3) throw new RangeError(`${name}: a strided view of ${extents.length} axes`);
  const [n, rows, columns] = [1, 1, ...extents].slice(-3) as [number, number, number];
  const [step, rowStride, columnStride] = [0, 0, ...steps].slice(-3) as [number, number, number];
  const size = dtypes[dtype].blockBytes;
  return Array.from({ length: n }, (_, i) => {
    return { source, offset: offset + i * step * size, rows, columns, rowStride, columnStride };
  });
}

const isRows = ({ shape, strides }: TensorView) => strides?.at(-1) === 1 || shape.at(-1) === 1;

function isTransposed(view: TensorView): view is Strided {
  return view.strides !== undefined && !isRows(view) && (view.strides.at(-2) === 1 || view.shape.at(-2) === 1);
}

/** Matrices that stand transposed in the same rows of a source, read once and turned as many rows of each at a time as memory allows. */
async function* transposed(
  views: readonly TensorView[],
  targets: readonly DType[],
  quantizer: Quantizer,
): AsyncGenerator<readonly [number, Uint8Array]> {
  const first = views[0]!;
  const size = dtypes[first.dtype].blockBytes;
  const base = Math.min(...views.map(({ offset }) => offset));
  const skips = views.map(({ offset }) => offset - base); // bytes from the first of the views, in a row of the source
  const block = ([row, bytes, i]: readonly [number, Uint8Array, number], columns: number) =>
    first.dtype === targets[i] ? bytes : recode(views[i]!, targets[i]!, columns, bytes, row * columns, quantizer);
  for (const [e, m] of matrices({ ...first, offset: base }).entries()) {
    const stride = m.columnStride * size;
    const most = Math.max(1, Math.floor(turnedBytes / (views.length * m.columns * size))); // rows of each view at a time
    for (let start = 0; start < m.rows; start += most) {
      const rows = Math.min(most, m.rows - start);
      const out = views.map(() => new Uint8Array(rows * m.columns * size));
      let column = 0;
      const used = Math.max(...skips) + rows * size;
      const atOnce = Math.max(1, Math.floor(blockBytes / stride));
      for await (const bytes of reads(m, m.columns, stride, atOnce, start * size, used)) {
        const n = (bytes.length - used) / stride + 1;
        for (const [i, skip] of skips.entries()) {
          const from = { bytes, at: skip / size, stride: m.columnStride };
          quantizer.transpose(size, n, rows, from, { bytes: out[i]!, at: column, stride: m.columns });
        }
        column += n;
      }
      const atOnceOut = Math.min(mostRows, Math.max(1, Math.floor(blockBytes / (m.columns * size))));
      for (const [i, turned] of out.entries())
        for (let row = 0; row < rows; row += atOnceOut) {
          const bytes = turned.subarray(row * m.columns * size, Math.min(rows, row + atOnceOut) * m.columns * size);
          yield [i, block([e * m.rows + start + row, bytes, i], m.columns)];
        }
    }
  }
}

/**
 * `[E, R₁ + R₂ + …, C]`, the views side by side, turned to `[E, C, R₁ + R₂ + …]` as `dtype`, which is no block format:
 * Hugging Face's fused experts from separate ones.
 */
export function turned(views: readonly TensorView[], dtype: DType, quantizer: Quantizer): AsyncGenerator<Uint8Array> {
  const stored = storedTurned(views);
  return stored ? recoded(stored, dtype, quantizer) : oneAhead(turnedBlocks(views, dtype, quantizer));
}

/** The source's own rows, where they are what turning the views would give: nothing is turned twice. */
function storedTurned(views: readonly TensorView[]): TensorView | undefined {
  const { strides, ...first } = views[0]!;
  const [experts, , columns] = first.shape as [number, number, number];
  const width = views.reduce((sum, { shape }) => sum + shape[1]!, 0);
  let offset = first.offset;
  for (const view of views) {
    const isHere = view.source === first.source && view.dtype === first.dtype && view.offset === offset;
    if (!isHere || view.strides?.join() !== [columns * width, 1, width].join()) return undefined;
    offset += rowBytes(view.dtype, view.shape[1]!);
  }
  return { ...first, shape: [experts, columns, width] };
}

async function* turnedBlocks(
  views: readonly TensorView[],
  dtype: DType,
  quantizer: Quantizer,
): AsyncGenerator<Uint8Array> {
  const [experts, , columns] = views[0]!.shape as [number, number, number];
  const width = views.reduce((sum, { shape }) => sum + shape[1]!, 0);
  const size = dtypes[dtype].blockBytes;
  const most = Math.max(1, Math.floor((2 * turnedBytes) / (width * size))); // columns turned at a time
  for (let e = 0; e < experts; e++)
    for (let first = 0; first < columns; first += most) {
      const count = Math.min(most, columns - first);
      const out = new Uint8Array(count * width * size);
      let row = 0;
      for (const view of views)
        for await (const bytes of recoded(expert(view, e), dtype, quantizer)) {
          const n = bytes.length / (columns * size);
          const from = { bytes, at: first, stride: columns };
          quantizer.transpose(size, n, count, from, { bytes: out, at: row, stride: width });
          row += n;
        }
      for (let at = 0; at < out.length; at += blockBytes) yield out.subarray(at, Math.min(out.length, at + blockBytes));
    }
}

function expert(view: TensorView, e: number): TensorView {
  const [, rows, columns] = view.shape as [number, number, number];
  const shape = [rows, columns];
  const { strides, dtype, ...rest } = view;
  if (!strides) return { ...rest, dtype, shape, offset: view.offset + e * rows * rowBytes(dtype, columns) };
  const offset = view.offset + e * strides[0]! * dtypes[dtype].blockBytes;
  return { ...rest, dtype, shape, offset, strides: strides.slice(1) };
}

/** The same items, each already being made while the one before is used. */
async function* oneAhead<T>(items: AsyncGenerator<T>): AsyncGenerator<T> {
  let next = items.next();
  try {
    for (;;) {
      const { done, value } = await next;
      if (done) return;
      next = items.next();
      next.catch(() => {}); // reported when it is awaited, if it still is
      yield value;
    }
  } finally {
    next.catch(() => {});
    await items.return(undefined).catch(() => {});
  }
}
