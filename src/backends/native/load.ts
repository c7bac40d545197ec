// Views of a checkpoint into memory. Files are read by native threads in large blocks, in the order of the file;
// strided views of the same bytes are read once and transposed on the way.

import type { LoadOptions } from "../../tensor/backend.ts";
import { type DType, dtypes, rowBytes } from "../../tensor/dtype.ts";
import { CheckpointError } from "../../tensor/errors.ts";
import { type Composition, elementCount, type Shape, storedBytes, type TensorView } from "../../tensor/tensor.ts";
import type { Addon } from "./addon.ts";
import type { Memory, Place } from "./memory.ts";

const blockBytes = 2 * 2 ** 20; // large enough for a disk with several in flight, small enough that these weigh little

/** The dtypes whose matrices the integer kernels take, packed as native/packed.h draws it. */
export const packable: readonly DType[] = ["q8_0", "q4_0", "q4_k", "q5_k", "q6_k"];
const groupRows = 16;

/** Bytes of packed matrices `[…, O, I]`: each has whole groups of rows. */
export function packedBytes(dtype: DType, shape: Shape): number {
  const rows = shape.at(-2)!;
  return elementCount(shape.slice(0, -2)) * Math.ceil(rows / groupRows) * groupRows * rowBytes(dtype, shape.at(-1)!);
}

/**
 * Where the elements of each view are now, row-major, or its matrices packed: side by side in regions of memory. What has memory of
 * its own lies on small pages if it is smaller than a huge one (2 MiB), and ends on them else; from small pages weights are
 * read at half the speed (native/memory.cc). `most`: bytes of a region of several views.
 */
export async function readViews(
  addon: Addon,
  memory: Memory,
  views: readonly TensorView[],
  packed: (view: TensorView) => boolean,
  { onProgress, signal }: LoadOptions,
  most = 2 ** 30,
): Promise<Place[]> {
  signal?.throwIfAborted();
  const total = views.reduce((bytes, view) => bytes + storedBytes(view), 0);
  const size = (view: TensorView) => (packed(view) ? packedBytes(view.dtype, view.shape) : storedBytes(view));
  const spots = spotsOf(views.map(size), most);
  const regions: ArrayBuffer[] = [];
  try {
    for (const bytes of spots.regionBytes) regions.push(memory.keep(bytes));
    const plan = new Plan();
    const rest: number[] = []; // views that are not in files, or walk in another way than the plan can
    for (const [i, view] of views.entries()) if (!plan.add(view, i, packed(view))) rest.push(i);
    let done = 0;
    const report = (bytes: number) => onProgress?.(Math.min(bytes, total), total);
    if (plan.size > 0) await run(addon, plan.flat(spots.of), plan.paths, regions, report, signal);
    done += plan.bytes;
    const places = spots.of.map(({ region, at }): Place => ({ buffer: regions[region]!, at }));
    for (const i of rest) {
      signal?.throwIfAborted();
      const [view, { buffer, at }] = [views[i]!, places[i]!];
      if (packed(view)) await pack(addon, view, buffer, at, signal);
      else {
        const out = new Uint8Array(buffer, at, storedBytes(view));
        await (view.strides ? gather(view, out, signal) : copy(view, out, signal, (bytes) => report(done + bytes)));
      }
      done += storedBytes(view);
      report(done);
    }
    return places;
  } catch (error) {
    for (const region of regions) memory.drop(region);
    throw error;
  }
}

interface Spot {
  readonly region: number;
  /** In bytes; whole pages from the region's beginning. */
  readonly at: number;
}

/** Spots for so many bytes each, in their order; a region begins where one of several would hold more than `most`. */
export function spotsOf(sizes: readonly number[], most: number): { of: Spot[]; regionBytes: number[] } {
  const pageBytes = 4096;
  const of: Spot[] = [];
  const regionBytes: number[] = [];
  for (const size of sizes) {
    const pages = Math.ceil(size / pageBytes) * pageBytes;
    const last = regionBytes.length - 1;
    if (last >= 0 && regionBytes[last]! + pages <= most) {
      of.push({ region: last, at: regionBytes[last]! });
      regionBytes[last]! += pages;
    } else {
      of.push({ region: regionBytes.length, at: 0 });
      regionBytes.push(pages);
    }
  }
  return { of, regionBytes };
}

/** What native/reader.cc is told: see Addon.read. */
class Plan {
  readonly paths: string[] = [];
  readonly #units: {
    file: number;
    offset: number;
    bytes: number;
    scatters: number[][];
    /** rows, bytes of a row, bytes of an element, type */
    shape: [number, number, number, number];
  }[] = [];
  readonly #turned = new Map<string, Turned[]>();
  /** Bytes of the views that were added. */
  bytes = 0;

  get size(): number {
    return this.#units.length + this.#turned.size;
  }

  /** False if the view must be read in another way. */
  add(view: TensorView, i: number, packed: boolean): boolean {
    const { path, composition } = view.source;
    if (packed) {
      if (path === undefined || view.strides) return false;
      this.#addPacked(view, i);
      return true;
    }
    const axes = collapsed(view);
    const isTurned = axes.length === 3 && axes[1]!.stride === 1;
    if (!isTurned && (axes.length > 2 || axes[axes.length - 1]!.stride !== 1)) return false;
    if (path !== undefined) {
      if (isTurned) this.#addTurned(turned(path, view, i, axes as [Axis, Axis, Axis]));
      else this.#addRows(path, view, i, axes);
    } else {
      const isWhole = view.offset === 0 && storedBytes(view) === view.source.byteLength;
      if (!composition || !isWhole || !composition.pieces.every(({ source }) => source.path !== undefined))
        return false;
      if (!isTurned && axes.length > 1) return false;
      if (isTurned)
        for (const piece of turnedPieces(composition, view, i, axes as [Axis, Axis, Axis])) this.#addTurned(piece);
      else this.#addPieces(composition, i);
    }
    this.bytes += storedBytes(view);
    return true;
  }

  /** Rows with gaps between them, or one. */
  #addRows(path: string, view: TensorView, i: number, axes: readonly Axis[]): void {
    const element = dtypes[view.dtype].blockBytes;
    const bytes = rowBytes(view.dtype, axes[axes.length - 1]!.extent);
    const outer = axes.length === 2 ? axes[0]! : { extent: 1, stride: 0 };
    for (let row = 0; row < outer.extent; row++)
      this.#addBytes(path, view.offset + row * outer.stride * element, bytes, i, row * bytes);
  }

  #addBytes(path: string, offset: number, bytes: number, i: number, to: number): void {
    for (let at = 0; at < bytes; at += blockBytes)
      this.#units.push({
        file: this.#file(path),
        offset: offset + at,
        bytes: Math.min(blockBytes, bytes - at),
        scatters: [[i, to + at, 0, 0, 0, 0]],
        shape: [0, 0, 0, 0],
      });
  }

  /** Each piece as it lies in its file; of short runs many at a time, scattered to the rows they belong to. */
  #addPieces({ rows, pieces }: Composition, i: number): void {
    const rowLength = pieces.reduce((sum, { run }) => sum + run, 0);
    let column = 0;
    for (const { source, offset, run } of pieces) {
      const atOnce = Math.max(1, Math.floor(blockBytes / run));
      for (let row = 0; row < rows; row += atOnce) {
        const n = Math.min(atOnce, rows - row);
        const to = row * rowLength + column;
        if (n === 1) this.#addBytes(source.path!, offset + row * run, run, i, to);
        else
          this.#units.push({
            file: this.#file(source.path!),
            offset: offset + row * run,
            bytes: n * run,
            scatters: [[i, to, 0, run, 1, rowLength]],
            shape: [n, run, 1, 0],
          });
      }
      column += run;
    }
  }

  #addTurned(matrices: Turned): void {
    const { path, element, experts, rows } = matrices;
    const key = [path, element, experts.extent, experts.stride, rows.extent, rows.stride].join(":");
    const group = this.#turned.get(key);
    if (group) group.push(matrices);
    else this.#turned.set(key, [matrices]);
  }

  #addPacked(view: TensorView, i: number): void {
    const [rows, columns] = view.shape.slice(-2) as [number, number];
    const row = rowBytes(view.dtype, columns);
    const groups = Math.ceil(rows / groupRows);
    const atOnce = groupRows * Math.max(1, Math.floor(blockBytes / (groupRows * row)));
    for (let matrix = 0; matrix < elementCount(view.shape.slice(0, -2)); matrix++)
      for (let first = 0; first < rows; first += atOnce) {
        const n = Math.min(atOnce, rows - first);
        this.#units.push({
          file: this.#file(view.source.path!),
          offset: view.offset + (matrix * rows + first) * row,
          bytes: n * row,
          scatters: [[i, (matrix * groups * groupRows + first) * row, 0, 0, 0, 0]],
          shape: [n, row, 0, dtypes[view.dtype].ggmlType!],
        });
      }
    this.bytes += storedBytes(view);
  }

  /** Units by file and offset, and their scatters to the spots of the views. */
  flat(spots: readonly Spot[]): { units: Float64Array; scatters: Float64Array } {
    for (const group of this.#turned.values()) for (const set of sameRows(group)) this.#addTogether(set);
    this.#turned.clear();
    this.#units.sort((a, b) => a.file - b.file || a.offset - b.offset);
    let first = 0;
    const units = this.#units.flatMap(({ file, offset, bytes, scatters, shape }) => {
      first += scatters.length;
      return [file, offset, bytes, first - scatters.length, scatters.length, ...shape];
    });
    return {
      units: Float64Array.from(units),
      scatters: Float64Array.from(
        this.#units.flatMap((u) =>
          u.scatters.flatMap(([i, to, ...rest]) => [spots[i!]!.region, spots[i!]!.at + to!, ...rest]),
        ),
      ),
    };
  }

  /** What lies in the same rows of the file is read once. */
  #addTogether(set: readonly Turned[]): void {
    const { path, element, experts, rows, offset: base } = set[0]!;
    const used = Math.max(...set.map(({ offset, columns }) => offset - base + columns * element)); // of a row
    const atOnce = Math.max(1, Math.floor(blockBytes / rows.stride));
    for (let e = 0; e < experts.extent; e++)
      for (let row = 0; row < rows.extent; row += atOnce) {
        const n = Math.min(atOnce, rows.extent - row);
        this.#units.push({
          file: this.#file(path),
          offset: base + e * experts.stride + row * rows.stride,
          bytes: (n - 1) * rows.stride + used,
          scatters: set.map(({ i, offset, columns, to }) => {
            return [i, to.offset + e * to.expert + row * element, offset - base, columns, to.column, element];
          }),
          shape: [n, rows.stride, element, 0],
        });
      }
  }

  #file(path: string): number {
    const known = this.paths.indexOf(path);
    return known >= 0 ? known : this.paths.push(path) - 1;
  }
}

/** `[E, rows, columns]` of a file that become `[E, columns, rows]` of a buffer, or a part of it. Bytes, but for extents. */
interface Turned {
  readonly i: number;
  readonly path: string;
  readonly element: number;
  readonly offset: number;
  readonly experts: Axis;
  readonly rows: Axis;
  readonly columns: number;
  readonly to: { readonly offset: number; readonly expert: number; readonly column: number };
}

function turned(
  path: string,
  view: TensorView,
  i: number,
  [experts, columns, rows]: readonly [Axis, Axis, Axis],
): Turned {
  const element = dtypes[view.dtype].blockBytes;
  const inBytes = ({ extent, stride }: Axis): Axis => ({ extent, stride: stride * element });
  const column = rows.extent * element;
  return {
    ...{ i, path, element, offset: view.offset, experts: inBytes(experts), rows: inBytes(rows) },
    ...{ columns: columns.extent, to: { offset: 0, expert: columns.extent * column, column } },
  };
}

/** The same of a composed source: its pieces stand side by side in the matrix's rows, or each has some of its rows. */
function turnedPieces(
  { rows: count, pieces }: Composition,
  view: TensorView,
  i: number,
  axes: [Axis, Axis, Axis],
): Turned[] {
  const whole = turned("", view, i, axes);
  const { experts, rows, element, to } = whole;
  const isOfColumns = count === experts.extent * rows.extent;
  let start = 0; // of the piece, in a row of the composition
  return pieces.map(({ source, offset, run }) => {
    const at = start;
    start += run;
    const own = { ...whole, path: source.path!, offset };
    if (isOfColumns)
      return {
        ...own,
        ...{
          experts: { extent: experts.extent, stride: rows.extent * run },
          rows: { extent: rows.extent, stride: run },
        },
        ...{ columns: run / element, to: { ...to, offset: (at / element) * to.column } },
      };
    return {
      ...own,
      ...{ experts: { extent: experts.extent, stride: run }, rows: { extent: run / rows.stride, stride: rows.stride } },
      to: { ...to, offset: (at / rows.stride) * element },
    };
  });
}

/** Cuts a group with equal strides into sets that share rows: all offsets within one row of the first. */
function sameRows(group: readonly Turned[]): Turned[][] {
  const sets: Turned[][] = [];
  for (const item of [...group].sort((a, b) => a.offset - b.offset)) {
    const set = sets[sets.length - 1];
    const end = item.offset + item.columns * item.element;
    if (set && end - set[0]!.offset <= item.rows.stride) set.push(item);
    else sets.push([item]);
  }
  return sets;
}

interface Axis {
  readonly extent: number;
  readonly stride: number;
}

/** A view's axes, outermost first, with neighbours that act as one joined; a transposed matrix gets a first axis of 1. */
function collapsed({ shape, strides }: TensorView): Axis[] {
  if (!strides) return [{ extent: elementCount(shape), stride: 1 }];
  const axes: Axis[] = [];
  for (const [i, extent] of shape.entries()) {
    const stride = strides[i]!;
    const before = axes[axes.length - 1];
    if (extent === 1) continue;
    if (before && before.stride === stride * extent) axes[axes.length - 1] = { extent: before.extent * extent, stride };
    else axes.push({ extent, stride });
  }
  if (axes.length === 0) return [{ extent: 1, stride: 1 }];
  if (axes.length === 2 && axes[0]!.stride === 1) axes.unshift({ extent: 1, stride: 0 });
  return axes;
}

function run(
  addon: Addon,
  { units, scatters }: { readonly units: Float64Array; readonly scatters: Float64Array },
  paths: readonly string[],
  regions: readonly ArrayBuffer[],
  report: (bytes: number) => void,
  signal: AbortSignal | undefined,
): Promise<void> {
  const caller = new Error().stack?.split("\n").slice(1).join("\n"); // the reader's threads have no stack of ours
  return new Promise((resolve, reject) => {
    let failure: unknown; // of the caller's onProgress
    const stop = () => addon.cancel(reading);
    const reading = addon.read(paths, units, scatters, regions, (done, finished, message) => {
      try {
        report(done);
      } catch (error) {
        failure ??= error;
        stop();
      }
      if (!finished) return;
      signal?.removeEventListener("abort", stop);
      if (message) {
        const error = new CheckpointError(message);
        error.stack = `${error.name}: ${message}\n${caller}`;
        reject(error);
      } else if (failure) reject(failure);
      else if (signal?.aborted) reject(signal.reason);
      else resolve();
    });
    signal?.addEventListener("abort", stop, { once: true });
  });
}

/** The same of a source that is not a file: all of it is read first. */
async function pack(
  addon: Addon,
  view: TensorView,
  buffer: ArrayBuffer,
  at: number,
  signal?: AbortSignal,
): Promise<void> {
  const plain = new Uint8Array(storedBytes(view));
  await (view.strides ? gather(view, plain, signal) : copy(view, plain, signal));
  const [rows, columns] = view.shape.slice(-2) as [number, number];
  const [from, to] = [rows * rowBytes(view.dtype, columns), packedBytes(view.dtype, [rows, columns])];
  const type = dtypes[view.dtype].ggmlType!;
  for (let matrix = 0; matrix < elementCount(view.shape.slice(0, -2)); matrix++)
    addon.pack(rows, columns, type, plain.buffer, matrix * from, buffer, at + matrix * to);
}

/** A view of a source that is not a file. */
async function copy(
  view: TensorView,
  out: Uint8Array,
  signal?: AbortSignal,
  report: (bytes: number) => void = () => {},
): Promise<void> {
  const total = storedBytes(view);
  for (let at = 0; at < total; at += blockBytes) {
    signal?.throwIfAborted();
    out.set(await view.source.read(view.offset + at, Math.min(blockBytes, total - at)), at);
    report(at);
  }
}

/** Any strides of a source that is not a file, slice by slice of the first axis. */
async function gather(view: TensorView, out: Uint8Array, signal?: AbortSignal): Promise<void> {
  const { shape, dtype, source, offset } = view;
  const strides = view.strides!;
  const element = dtypes[dtype].blockBytes;
  const reach = shape.slice(1).reduce((sum, extent, axis) => sum + (extent - 1) * strides[axis + 1]!, 1);
  let bytes: Uint8Array;
  let to = 0;
  const walk = (axis: number, from: number): void => {
    if (axis === shape.length) {
      for (let b = 0; b < element; b++) out[to++] = bytes[from * element + b]!;
      return;
    }
    for (let i = 0; i < shape[axis]!; i++) walk(axis + 1, from + i * strides[axis]!);
  };
  for (let slice = 0; slice < (shape[0] ?? 1); slice++) {
    signal?.throwIfAborted();
    bytes = await source.read(offset + slice * (strides[0] ?? 0) * element, reach * element);
    walk(1, 0);
  }
}
