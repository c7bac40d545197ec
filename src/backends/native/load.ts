// Views of a checkpoint into memory. Files are read by native threads in large blocks, in the order of the file;
// strided views of the same bytes are read once and transposed on the way.

import type { LoadOptions } from "../../tensor/backend.ts";
import { byteLength, type DType, dtypes, rowBytes } from "../../tensor/dtype.ts";
import { CheckpointError } from "../../tensor/errors.ts";
import { elementCount, type Shape, type TensorView } from "../../tensor/tensor.ts";
import type { Addon } from "./addon.ts";
import type { Memory } from "./memory.ts";

const blockBytes = 4 * 2 ** 20; // large enough for a disk's full speed, small enough that several in flight weigh little

/** The dtypes whose matrices the integer kernels take, packed as native/packed.h draws it. */
export const packable: readonly DType[] = ["q8_0", "q4_0", "q4_k", "q5_k", "q6_k"];
const groupRows = 16;

/** Bytes of packed matrices `[…, O, I]`: each has whole groups of rows. */
export function packedBytes(dtype: DType, shape: Shape): number {
  const rows = shape.at(-2)!;
  return elementCount(shape.slice(0, -2)) * Math.ceil(rows / groupRows) * groupRows * rowBytes(dtype, shape.at(-1)!);
}

/** One buffer for each view, its elements row-major, or its matrices packed. */
export async function readViews(
  addon: Addon,
  memory: Memory,
  views: readonly TensorView[],
  packed: (view: TensorView) => boolean,
  { onProgress, signal }: LoadOptions,
): Promise<ArrayBuffer[]> {
  signal?.throwIfAborted();
  const total = views.reduce((bytes, view) => bytes + viewBytes(view), 0);
  const buffers: ArrayBuffer[] = [];
  try {
    for (const view of views)
      buffers.push(memory.keep(packed(view) ? packedBytes(view.dtype, view.shape) : viewBytes(view)));
    const plan = new Plan();
    const rest: number[] = []; // views that are not in files, or walk in another way than the plan can
    for (const [i, view] of views.entries()) if (!plan.add(view, i, packed(view))) rest.push(i);
    let done = 0;
    const report = (bytes: number) => onProgress?.(Math.min(bytes, total), total);
    if (plan.size > 0) await run(addon, plan, buffers, report, signal);
    done += plan.bytes;
    for (const i of rest) {
      signal?.throwIfAborted();
      const view = views[i]!;
      await (packed(view)
        ? pack(addon, view, buffers[i]!)
        : view.strides
          ? gather(view, buffers[i]!)
          : copy(view, buffers[i]!, (bytes) => report(done + bytes)));
      done += viewBytes(view);
      report(done);
    }
    return buffers;
  } catch (error) {
    for (const buffer of buffers) memory.drop(buffer);
    throw error;
  }
}

function viewBytes({ dtype, shape }: TensorView): number {
  return byteLength(dtype, elementCount(shape));
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
  readonly #transposed = new Map<string, { view: TensorView; i: number }[]>();
  /** Bytes of the views that were added. */
  bytes = 0;

  get size(): number {
    return this.#units.length + this.#transposed.size;
  }

  /** False if the view must be read in another way. */
  add(view: TensorView, i: number, packed: boolean): boolean {
    const { path } = view.source;
    if (path === undefined) return false;
    if (packed) {
      if (view.strides) return false;
      this.#addPacked(view, i);
      return true;
    }
    const shape = collapsed(view);
    const turned = shape.length === 3 && shape[1]!.stride === 1;
    if (!turned && shape[shape.length - 1]!.stride !== 1) return false;
    if (!turned && shape.length > 2) return false;
    this.bytes += viewBytes(view);
    if (turned) {
      const key = [path, view.dtype, shape[0]!.extent, shape[0]!.stride, shape[2]!.extent, shape[2]!.stride].join(":");
      const group = this.#transposed.get(key);
      if (group) group.push({ view, i });
      else this.#transposed.set(key, [{ view, i }]);
      return true;
    }
    const run = shape[shape.length - 1]!.extent;
    const outer = shape.length === 2 ? shape[0]! : { extent: 1, stride: 0 };
    const { blockElements, blockBytes: element } = dtypes[view.dtype];
    const bytes = (run / blockElements) * element;
    for (let row = 0; row < outer.extent; row++)
      for (let at = 0; at < bytes; at += blockBytes)
        this.#units.push({
          file: this.#file(path),
          offset: view.offset + row * outer.stride * element + at,
          bytes: Math.min(blockBytes, bytes - at),
          scatters: [[i, row * bytes + at, 0, 0, 0]],
          shape: [0, 0, 0, 0],
        });
    return true;
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
          scatters: [[i, (matrix * groups * groupRows + first) * row, 0, 0, 0]],
          shape: [n, row, 0, dtypes[view.dtype].ggmlType!],
        });
      }
    this.bytes += viewBytes(view);
  }

  /** Units by file and offset, and their scatters. */
  flat(): { units: Float64Array; scatters: Float64Array } {
    for (const group of this.#transposed.values()) for (const row of sameRows(group)) this.#addTransposed(row);
    this.#transposed.clear();
    this.#units.sort((a, b) => a.file - b.file || a.offset - b.offset);
    let first = 0;
    const units = this.#units.flatMap(({ file, offset, bytes, scatters, shape }) => {
      first += scatters.length;
      return [file, offset, bytes, first - scatters.length, scatters.length, ...shape];
    });
    return {
      units: Float64Array.from(units),
      scatters: Float64Array.from(this.#units.flatMap((u) => u.scatters.flat())),
    };
  }

  /** Views whose columns lie in the same rows of the file: `[E, rows, row]` of it becomes `[E, columns, rows]` of each. */
  #addTransposed(group: readonly { view: TensorView; i: number }[]): void {
    const { view } = group[0]!;
    const [experts, , rows] = collapsed(view) as [Axis, Axis, Axis];
    const element = dtypes[view.dtype].blockBytes;
    const base = Math.min(...group.map((g) => g.view.offset));
    const rowBytes = rows.stride * element;
    const columns = group.map((g) => ({ ...g, skip: g.view.offset - base, count: collapsed(g.view)[1]!.extent }));
    const used = Math.max(...columns.map(({ skip, count }) => skip + count * element)); // of a row
    const atOnce = Math.max(1, Math.floor(blockBytes / rowBytes));
    for (let e = 0; e < experts.extent; e++)
      for (let row = 0; row < rows.extent; row += atOnce) {
        const n = Math.min(atOnce, rows.extent - row);
        this.#units.push({
          file: this.#file(view.source.path!),
          offset: base + e * experts.stride * element + row * rowBytes,
          bytes: (n - 1) * rowBytes + used,
          scatters: columns.map(({ i, skip, count }) => {
            const stride = rows.extent * element;
            return [i, e * count * stride + row * element, skip, count, stride];
          }),
          shape: [n, rowBytes, element, 0],
        });
      }
  }

  #file(path: string): number {
    const known = this.paths.indexOf(path);
    return known >= 0 ? known : this.paths.push(path) - 1;
  }
}

/** Cuts a group with equal strides into sets that share rows: all offsets within one row of the first. */
function sameRows<T extends { view: TensorView }>(group: readonly T[]): T[][] {
  const sorted = [...group].sort((a, b) => a.view.offset - b.view.offset);
  const sets: T[][] = [];
  for (const item of sorted) {
    const set = sets[sets.length - 1];
    const axes = collapsed(item.view);
    const row = axes[2]!.stride * dtypes[item.view.dtype].blockBytes;
    const end = item.view.offset + axes[1]!.extent * dtypes[item.view.dtype].blockBytes;
    if (set && end - set[0]!.view.offset <= row) set.push(item);
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
  plan: Plan,
  buffers: readonly ArrayBuffer[],
  report: (bytes: number) => void,
  signal: AbortSignal | undefined,
): Promise<void> {
  const { units, scatters } = plan.flat();
  const caller = new Error().stack?.split("\n").slice(1).join("\n"); // the reader's threads have no stack of ours
  return new Promise((resolve, reject) => {
    let failure: unknown; // of the caller's onProgress
    const stop = () => addon.cancel(reading);
    const reading = addon.read(plan.paths, units, scatters, buffers, (done, finished, message) => {
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
async function pack(addon: Addon, view: TensorView, buffer: ArrayBuffer): Promise<void> {
  const plain = new ArrayBuffer(viewBytes(view));
  await (view.strides ? gather(view, plain) : copy(view, plain, () => {}));
  const [rows, columns] = view.shape.slice(-2) as [number, number];
  const [from, to] = [byteLength(view.dtype, rows * columns), packedBytes(view.dtype, [rows, columns])];
  const type = dtypes[view.dtype].ggmlType!;
  for (let matrix = 0; matrix * to < buffer.byteLength; matrix++)
    addon.pack(rows, columns, type, plain, matrix * from, buffer, matrix * to);
}

/** A view of a source that is not a file. */
async function copy(view: TensorView, buffer: ArrayBuffer, report: (bytes: number) => void): Promise<void> {
  const out = new Uint8Array(buffer);
  const total = viewBytes(view);
  for (let at = 0; at < total; at += blockBytes) {
    out.set(await view.source.read(view.offset + at, Math.min(blockBytes, total - at)), at);
    report(at);
  }
}

/** Any strides, element by element, slice by slice of the first axis. */
async function gather(view: TensorView, buffer: ArrayBuffer): Promise<void> {
  const { shape, dtype, source, offset } = view;
  const strides = view.strides!;
  const element = dtypes[dtype].blockBytes;
  const out = new Uint8Array(buffer);
  const inner = shape.slice(1);
  const reach = inner.reduce((sum, extent, axis) => sum + (extent - 1) * strides[axis + 1]!, 1);
  let to = 0;
  for (let slice = 0; slice < (shape[0] ?? 1); slice++) {
    const bytes = await source.read(offset + slice * (strides[0] ?? 0) * element, reach * element);
    const at = new Array<number>(inner.length).fill(0);
    for (let i = 0; i < elementCount(inner); i++, to += element) {
      const from = at.reduce((sum, coordinate, axis) => sum + coordinate * strides[axis + 1]!, 0) * element;
      for (let b = 0; b < element; b++) out[to + b] = bytes[from + b]!;
      for (let axis = at.length - 1; axis >= 0 && ++at[axis]! === inner[axis]; axis--) at[axis] = 0;
    }
  }
}
