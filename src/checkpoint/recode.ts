// A tensor of a checkpoint as bytes of another dtype or the other way around, a few MiB at a time: while a block is
// recoded, the next one is being read and the one before written.

import { dequantize } from "../tensor/block-formats.ts";
import { type DType, dtypes, rowBytes } from "../tensor/dtype.ts";
import { CheckpointError } from "../tensor/errors.ts";
import { isQuantizable, quantize } from "../tensor/quantize.ts";
import { elementCount, type TensorView } from "../tensor/tensor.ts";

/** What changes the dtype of rows: every row of `columns` elements in the bytes of `from` becomes one of `to` in `out`. */
export interface Quantizer {
  /** The index of the first element that `to` cannot hold, or -1. */
  recodeRows(from: DType, to: DType, columns: number, x: Uint8Array, out: Uint8Array): number;
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
};

const blockBytes = 8 * 2 ** 20; // of what is read at once: several such blocks are in memory
const mostRows = 1 << 16; // of a block, for tensors with very short rows
const turnedBytes = 256 * 2 ** 20; // of a matrix that is turned in memory

/** The bytes of a view, row-major, as `dtype`. Throws CheckpointError for an element that `dtype` cannot hold. */
export function recoded(view: TensorView, dtype: DType, quantizer: Quantizer): AsyncGenerator<Uint8Array> {
  return oneAhead(recodedBlocks(view, dtype, quantizer));
}

async function* recodedBlocks(view: TensorView, dtype: DType, quantizer: Quantizer): AsyncGenerator<Uint8Array> {
  const columns = view.shape.at(-1) ?? 1;
  let done = 0; // elements
  for await (const bytes of rowMajor(view)) {
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

/** The bytes of a view in its own dtype, whole rows at a time, gathered where it has strides. */
async function* rowMajor(view: TensorView): AsyncGenerator<Uint8Array> {
  if (!view.strides) {
    const columns = view.shape.at(-1) ?? 1;
    const row = rowBytes(view.dtype, columns);
    const rows = row === 0 ? 0 : elementCount(view.shape) / columns;
    const atOnce = Math.min(mostRows, Math.max(1, Math.floor(blockBytes / row)));
    yield* reads(view, rows, row, atOnce, 0, row);
    return;
  }
  for (const matrix of matrices(view)) yield* gathered(matrix);
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
  readonly name: string;
  readonly dtype: DType;
  readonly offset: number;
  readonly rows: number;
  readonly columns: number;
  readonly rowStride: number;
  readonly columnStride: number;
}

function matrices(view: TensorView): Matrix[] {
  const { dtype, source, name } = view;
  const shape = [1, 1, ...view.shape].slice(-3);
  const strides = [0, 0, ...view.strides!].slice(-3);
  if (view.shape.length > 3) throw new RangeError(`${name}: a strided view of ${view.shape.length} axes`);
  const [n, rows, columns] = shape as [number, number, number];
  const [stride, rowStride, columnStride] = strides as [number, number, number];
  const size = dtypes[dtype].blockBytes;
  return Array.from({ length: n }, (_, i) => {
    const offset = view.offset + i * stride * size;
    return { source, name, dtype, offset, rows, columns, rowStride, columnStride };
  });
}

/** Rows of a strided matrix. One stride is 1: rows with gaps between them, or a matrix that stands turned. */
async function* gathered(m: Matrix): AsyncGenerator<Uint8Array> {
  const size = dtypes[m.dtype].blockBytes;
  if (m.columnStride === 1 || m.columns === 1) {
    const atOnce = Math.min(mostRows, Math.max(1, Math.floor(blockBytes / (m.rowStride * size))));
    const row = m.columns * size;
    for await (const bytes of reads(m, m.rows, m.rowStride * size, atOnce, 0, row)) {
      const n = (bytes.length - row) / (m.rowStride * size) + 1;
      const out = new Uint8Array(n * row);
      for (let i = 0; i < n; i++)
        out.set(bytes.subarray(i * m.rowStride * size, i * m.rowStride * size + row), i * row);
      yield out;
    }
    return;
  }
  if (m.rowStride !== 1 && m.rows !== 1) throw new RangeError(`${m.name}: a view with no stride of 1`);
  const most = Math.max(1, Math.floor(turnedBytes / (m.columns * size))); // rows turned at a time
  for (let first = 0; first < m.rows; first += most) {
    const rows = Math.min(most, m.rows - first);
    const out = new Uint8Array(rows * m.columns * size);
    const stride = m.columnStride * size;
    const atOnce = Math.max(1, Math.floor(blockBytes / stride));
    let column = 0;
    for await (const bytes of reads(m, m.columns, stride, atOnce, first * size, rows * size)) {
      const n = (bytes.length - rows * size) / stride + 1;
      turn(size, n, rows, { bytes, at: 0, stride: m.columnStride }, { bytes: out, at: column, stride: m.columns });
      column += n;
    }
    const atOnceOut = Math.max(1, Math.floor(blockBytes / (m.columns * size)));
    for (let row = 0; row < rows; row += atOnceOut)
      yield out.subarray(row * m.columns * size, Math.min(rows, row + atOnceOut) * m.columns * size);
  }
}

/**
 * `[E, R₁ + R₂ + …, C]`, the views side by side, turned to `[E, C, R₁ + R₂ + …]` as `dtype`, which is no block format:
 * Hugging Face's fused experts from separate ones.
 */
export function turned(views: readonly TensorView[], dtype: DType, quantizer: Quantizer): AsyncGenerator<Uint8Array> {
  return oneAhead(turnedBlocks(views, dtype, quantizer));
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
          turn(
            ...([size, n, count] as const),
            { bytes, at: first, stride: columns },
            { bytes: out, at: row, stride: width },
          );
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

/** Where a matrix lies in bytes; `at` and `stride` (from row to row) in elements. */
interface Grid {
  readonly bytes: Uint8Array;
  readonly at: number;
  readonly stride: number;
}

const tile = 32; // elements: a cache line of 16-bit ones

/**
 * to[j][i] = from[i][j] for `rows` × `columns` of from. Tile by tile through a small square, so that both sides are
 * touched a whole line at a time: where rows lie a power of two apart, few of their lines stay in a cache together.
 */
function turn(size: number, rows: number, columns: number, from: Grid, to: Grid): void {
  const [x, y] = [elements(size, from.bytes), elements(size, to.bytes)];
  const square = new (size === 1 ? Uint8Array : size === 2 ? Uint16Array : Uint32Array)(tile * tile);
  for (let i0 = 0; i0 < rows; i0 += tile) {
    const height = Math.min(tile, rows - i0);
    for (let j0 = 0; j0 < columns; j0 += tile) {
      const width = Math.min(tile, columns - j0);
      for (let i = 0; i < height; i++) {
        const source = from.at + (i0 + i) * from.stride + j0;
        for (let j = 0; j < width; j++) square[j * tile + i] = x[source + j]!;
      }
      for (let j = 0; j < width; j++) {
        const target = to.at + (j0 + j) * to.stride + i0;
        for (let i = 0; i < height; i++) y[target + i] = square[j * tile + i]!;
      }
    }
  }
}

function elements(size: number, bytes: Uint8Array): Uint8Array | Uint16Array | Uint32Array {
  const Elements = size === 1 ? Uint8Array : size === 2 ? Uint16Array : Uint32Array;
  if (size !== 1 && size !== 2 && size !== 4) throw new RangeError(`elements of ${size} bytes are not turned`);
  const aligned = bytes.byteOffset % size === 0 ? bytes : bytes.slice();
  return new Elements(aligned.buffer as ArrayBuffer, aligned.byteOffset, bytes.length / size);
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
