import { type DType, rowBytes } from "./dtype.ts";

/** Row-major extents; the last axis is contiguous. */
export type Shape = readonly number[];

/** A block of numbers that lives in one backend. What `data` is, only that backend knows. */
export interface Tensor {
  readonly shape: Shape;
  readonly dtype: DType;
  readonly backend: import("./backend.ts").Backend;
  readonly data: unknown;
}

/** Where the bytes of a checkpoint come from. */
export interface ByteSource {
  /** For messages: the file's name. */
  readonly name: string;
  readonly byteLength: number;
  /** Present where the source is a file that native code may open by itself. */
  readonly path?: string;
  /** Present where the source is made of ranges of others, which native code may read in its stead. */
  readonly composition?: Composition;
  /** Exactly `length` bytes from `offset`; rejects when the source ends before. */
  read(offset: number, length: number): Promise<Uint8Array>;
}

/** `rows` rows, each the pieces' runs side by side. */
export interface Composition {
  readonly rows: number;
  readonly pieces: readonly Piece[];
}

/** `run` bytes of every row, taken one after the other from `offset` of `source`. */
export interface Piece {
  readonly source: ByteSource;
  readonly offset: number;
  readonly run: number;
}

/**
 * A tensor of a checkpoint before it is loaded: a view of bytes.
 *
 * Without `strides` the elements stand row-major from `offset`. With `strides` (in elements, one for each axis; only
 * for dtypes whose blocks hold one element) the backend gathers them: this is how Hugging Face's fused
 * `[E, D, 2F]` experts become `[E, F, D]` gate and up matrices without a copy in between.
 */
export interface TensorView {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: Shape;
  readonly source: ByteSource;
  /** Bytes from the start of `source`. */
  readonly offset: number;
  readonly strides?: readonly number[];
}

/** Where a matrix lies in bytes; `at` and `stride` (from row to row) in elements. */
export interface Grid {
  readonly bytes: Uint8Array;
  readonly at: number;
  readonly stride: number;
}

/** The number of elements of a shape. */
export function elementCount(shape: Shape): number {
  let n = 1;
  for (const extent of shape) n *= extent;
  return n;
}

/** Bytes of a tensor stored row-major. Throws CheckpointError where blocks of the dtype do not divide a row. */
export function storedBytes({ dtype, shape }: { readonly dtype: DType; readonly shape: Shape }): number {
  return elementCount(shape.slice(0, -1)) * rowBytes(dtype, shape.at(-1) ?? 1);
}
