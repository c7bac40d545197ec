// Writes checkpoints tensor by tensor, so that none has to fit in memory: beside the target first, then renamed.

import { randomBytes } from "node:crypto";
import { mkdir, open, rename, rm, statfs, writeFile } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { type DType, dtypes } from "../tensor/dtype.ts";
import { CapacityError, CheckpointError, RequestError } from "../tensor/errors.ts";
import { type Shape, storedBytes } from "../tensor/tensor.ts";

/** A tensor to be written. */
export interface OutShape {
  readonly name: string;
  readonly dtype: DType;
  /** Row-major, `[out, in]` for a matrix; the GGUF writer turns it around. */
  readonly shape: Shape;
}

/** `chunks` yields its bytes in order, as often as it is called. */
export interface OutTensor extends OutShape {
  chunks(): AsyncIterable<Uint8Array>;
}

/** Tensors that are made of the same input. A chunk says by its index whose next bytes it is. */
export interface OutTensors {
  readonly tensors: readonly OutShape[];
  chunks(): AsyncIterable<readonly [tensor: number, bytes: Uint8Array]>;
}

const shapesOf = (out: OutTensor | OutTensors): readonly OutShape[] => ("tensors" in out ? out.tensors : [out]);

export interface WriteOptions {
  /** Called with bytes written so far and in all. */
  readonly onProgress?: (done: number, total: number) => void;
  readonly signal?: AbortSignal;
}

export type GgufScalarType =
  | "u8"
  | "i8"
  | "u16"
  | "i16"
  | "u32"
  | "i32"
  | "f32"
  | "bool"
  | "string"
  | "u64"
  | "i64"
  | "f64";

/** A metadata value with the type it has in the file. */
export type GgufValue =
  | { readonly type: GgufScalarType; readonly value: number | bigint | boolean | string }
  | {
      readonly type: "array";
      readonly of: GgufScalarType;
      readonly values: ArrayLike<number | bigint | boolean | string>;
    };

/** Bytes of all tensors in a file. */
export function allBytes(parts: readonly (OutTensor | OutTensors)[]): number {
  return parts.flatMap(shapesOf).reduce((sum, tensor) => sum + storedBytes(tensor), 0);
}

/**
 * Writes a folder in Hugging Face layout: the given texts (`config.json`, …) and the tensors, in one file or, above
 * `maxShardBytes`, in several with an index. Nothing is left behind on failure. Throws CapacityError when the disk is too small.
 */
export async function writeHuggingFace(
  folder: string,
  files: Readonly<Record<string, string>>,
  tensors: readonly OutTensor[],
  { maxShardBytes = 4e9, ...options }: WriteOptions & { readonly maxShardBytes?: number } = {},
): Promise<void> {
  await beside(folder, tensors, async (draft) => {
    await mkdir(draft);
    for (const [name, text] of Object.entries(files)) await writeFile(join(draft, name), text, { flush: true });
    const shards = shard(tensors, maxShardBytes);
    const shardName = (i: number) =>
      shards.length === 1 ? "model.safetensors" : `model-${pad(i + 1)}-of-${pad(shards.length)}.safetensors`;
    const count = counter(tensors, options);
    for (const [i, part] of shards.entries()) await writeSafetensors(join(draft, shardName(i)), part, count);
    if (shards.length > 1) {
      const weightMap = shards.flatMap((part, i) => part.map(({ name }) => [name, shardName(i)]));
      const index = { metadata: { total_size: count.total }, weight_map: Object.fromEntries(weightMap) };
      const text = `${JSON.stringify(index, null, 2)}\n`;
      await writeFile(join(draft, "model.safetensors.index.json"), text, { flush: true });
    }
  });
}

/** Writes one safetensors file. */
export async function writeSafetensorsFile(
  path: string,
  tensors: readonly OutTensor[],
  options: WriteOptions = {},
): Promise<void> {
  await beside(path, tensors, (draft) => writeSafetensors(draft, tensors, counter(tensors, options)));
}

/** Writes one GGUF file, version 3. `whenWhole` runs once it is whole and before it takes its place: for another that belongs to it. */
export async function writeGguf(
  path: string,
  metadata: ReadonlyMap<string, GgufValue>,
  parts: readonly (OutTensor | OutTensors)[],
  { whenWhole, ...options }: WriteOptions & { readonly whenWhole?: () => Promise<void> } = {},
): Promise<void> {
  const tensors = parts.flatMap(shapesOf);
  await beside(path, tensors, async (draft) => {
    await writing(draft, async (file) => {
      const header = ggufHeader(metadata, tensors);
      const count = counter(tensors, options);
      await file.write(header, 0);
      let at = header.length;
      for (const part of parts) at = await writePart(file, part, at, count, ggufPadding);
    });
    await whenWhole?.();
  });
}

/** Runs `write` on a path beside `target` and renames it into place once it is whole. */
async function beside(
  target: string,
  tensors: readonly OutShape[],
  write: (draft: string) => Promise<void>,
): Promise<void> {
  const place = dirname(resolve(target));
  const bytes = tensors.reduce((sum, tensor) => sum + storedBytes(tensor), 0);
  const draft = `${resolve(target)}.${randomBytes(4).toString("hex")}.partial`;
  try {
    await mkdir(place, { recursive: true });
    const { bavail, bsize } = await statfs(place);
    if (bytes > bavail * bsize)
      throw new CapacityError(
        `${target} needs ${size(bytes)} and its disk has ${size(bavail * bsize)} free; choose a smaller type or another disk`,
      );
    await write(draft);
    await rename(draft, target);
  } catch (error) {
    await rm(draft, { recursive: true, force: true }).catch(() => {}); // where nothing can be written, nothing is there
    const { code = "" } = error as NodeJS.ErrnoException;
    if (code === "ENOSPC") throw new CapacityError(`${target}: the disk is full; it needs ${size(bytes)}`);
    const reason = refusals[code];
    throw reason ? new RequestError(`${target}: ${reason}; choose another place`, { cause: error }) : error;
  }
}

// Why a system lets nobody write there.
const refusals: Readonly<Record<string, string>> = {
  EROFS: "its file system is read-only",
  EACCES: "permission denied",
  EPERM: "permission denied",
  ENOTDIR: "a part of the path is a file",
  EEXIST: "a part of the path is a file",
};

/** A file in the making. */
interface Draft {
  write(bytes: Uint8Array, place: number): Promise<void>;
}

const unflushedBytes = 64 * 2 ** 20;

/** Has the disk begin early: left to the end, the flush of what is in the page cache would wait for the disk alone. */
async function writing(path: string, body: (file: Draft) => Promise<void>): Promise<void> {
  const file = await open(path, "wx");
  let unflushed = 0;
  let flushing: Promise<void> | undefined;
  let failure: unknown; // of a flush: the system tells it once
  const flush = async () => {
    await file.datasync().catch((error: unknown) => {
      failure ??= error;
    });
    flushing = undefined;
  };
  try {
    await body({
      async write(bytes, place) {
        for (let at = 0; at < bytes.length; )
          at += (await file.write(bytes, at, bytes.length - at, place + at)).bytesWritten;
        unflushed += bytes.length;
        if (flushing || unflushed < unflushedBytes) return;
        unflushed = 0;
        flushing = flush();
      },
    });
    await flushing;
    await file.sync();
    if (failure) throw failure;
  } finally {
    await flushing;
    await file.close();
  }
}

const size = (bytes: number) => (bytes < 1e8 ? `${(bytes / 1e6).toFixed(3)} MB` : `${(bytes / 1e9).toFixed(2)} GB`);
const pad = (n: number) => String(n).padStart(5, "0");

/** Consecutive groups of at most `maxBytes`, or of one tensor that is larger. */
function shard(tensors: readonly OutTensor[], maxBytes: number): OutTensor[][] {
  const shards: OutTensor[][] = [[]];
  let room = maxBytes;
  for (const tensor of tensors) {
    const bytes = storedBytes(tensor);
    if (bytes > room && shards.at(-1)!.length > 0) {
      shards.push([]);
      room = maxBytes;
    }
    shards.at(-1)!.push(tensor);
    room -= bytes;
  }
  return shards;
}

interface Counter {
  readonly total: number;
  wrote(bytes: number): void;
}

function counter(tensors: readonly OutShape[], { onProgress, signal }: WriteOptions): Counter {
  const total = tensors.reduce((sum, tensor) => sum + storedBytes(tensor), 0);
  let done = 0;
  return {
    total,
    wrote(bytes) {
      signal?.throwIfAborted();
      done += bytes;
      onProgress?.(done, total);
    },
  };
}

/** Writes a part's tensors from `at`, each with its padding behind it; returns where they end. */
async function writePart(
  file: Draft,
  part: OutTensor | OutTensors,
  at: number,
  count: Counter,
  padding: (bytes: number) => number = () => 0,
): Promise<number> {
  const places: { next: number; readonly end: number }[] = [];
  let end = at;
  for (const tensor of shapesOf(part)) {
    const bytes = storedBytes(tensor);
    places.push({ next: end, end: end + bytes });
    await file.write(new Uint8Array(padding(bytes)), end + bytes);
    end += bytes + padding(bytes);
  }
  for await (const chunk of part.chunks()) {
    const [tensor, bytes] = chunk instanceof Uint8Array ? [0, chunk] : chunk;
    const place = places[tensor]!;
    if (place.next + bytes.length > place.end) break; // said below
    await file.write(bytes, place.next);
    place.next += bytes.length;
    count.wrote(bytes.length);
  }
  for (const [i, { name }] of shapesOf(part).entries())
    if (places[i]!.next !== places[i]!.end)
      throw new RangeError(`${name}: its chunks are not of the ${storedBytes(shapesOf(part)[i]!)} bytes expected`);
  return end;
}

/** Header length (u64), a JSON header padded with spaces to 8 bytes, then the tensors' bytes without gaps. */
async function writeSafetensors(path: string, tensors: readonly OutTensor[], count: Counter): Promise<void> {
  const entries: [string, unknown][] = [["__metadata__", { format: "pt" }]];
  let offset = 0;
  for (const tensor of tensors) {
    const dtype = dtypes[tensor.dtype].safetensors;
    if (!dtype)
      throw new CheckpointError(
        `${tensor.name}: safetensors has no dtype for ${tensor.dtype}; write f32, f16 or bf16, or a .gguf file`,
      );
    const end = offset + storedBytes(tensor);
    entries.push([tensor.name, { dtype, shape: tensor.shape, data_offsets: [offset, end] }]);
    offset = end;
  }
  const json = JSON.stringify(Object.fromEntries(entries));
  const text = new TextEncoder().encode(json);
  const header = new Uint8Array(8 + Math.ceil(text.length / 8) * 8).fill(0x20);
  new DataView(header.buffer).setBigUint64(0, BigInt(header.length - 8), true);
  header.set(text, 8);
  await writing(path, async (file) => {
    await file.write(header, 0);
    let at = header.length;
    for (const tensor of tensors) at = await writePart(file, tensor, at, count);
  });
}

const ggufAlignment = 32;
const ggufPadding = (bytes: number) => (ggufAlignment - (bytes % ggufAlignment)) % ggufAlignment;
const ggufTypes = [
  "u8",
  "i8",
  "u16",
  "i16",
  "u32",
  "i32",
  "f32",
  "bool",
  "string",
  "array",
  "u64",
  "i64",
  "f64",
] as const;

/** Everything before the tensors' data, padded to the alignment (specification gguf.md §1). */
function ggufHeader(metadata: ReadonlyMap<string, GgufValue>, tensors: readonly OutShape[]): Uint8Array {
  const out = new ByteWriter();
  out.u32(0x46554747); // "GGUF"
  out.u32(3);
  out.u64(tensors.length);
  out.u64(metadata.size);
  for (const [key, entry] of metadata) {
    out.string(key);
    out.u32(ggufTypes.indexOf(entry.type));
    if (entry.type !== "array") {
      out.value(entry.type, entry.value);
      continue;
    }
    out.u32(ggufTypes.indexOf(entry.of));
    out.u64(entry.values.length);
    for (let i = 0; i < entry.values.length; i++) out.value(entry.of, entry.values[i]!);
  }
  let offset = 0;
  for (const tensor of tensors) {
    const { ggmlType } = dtypes[tensor.dtype];
    if (ggmlType === undefined) throw new CheckpointError(`${tensor.name}: GGUF has no type for ${tensor.dtype}`);
    out.string(tensor.name);
    out.u32(tensor.shape.length);
    for (const extent of [...tensor.shape].reverse()) out.u64(extent);
    out.u32(ggmlType);
    out.u64(offset);
    const bytes = storedBytes(tensor);
    offset += bytes + ggufPadding(bytes);
  }
  return out.padded(ggufAlignment);
}

/** Little-endian bytes that grow. */
class ByteWriter {
  #bytes = new Uint8Array(1 << 16);
  #view = new DataView(this.#bytes.buffer);
  #length = 0;

  /** The offset of `n` fresh bytes. */
  #room(n: number): number {
    if (this.#length + n > this.#bytes.length) {
      const grown = new Uint8Array(Math.max(this.#bytes.length * 2, this.#length + n));
      grown.set(this.#bytes);
      this.#bytes = grown;
      this.#view = new DataView(grown.buffer);
    }
    this.#length += n;
    return this.#length - n;
  }

  u32(value: number): void {
    const at = this.#room(4);
    this.#view.setUint32(at, value, true);
  }

  u64(value: number | bigint): void {
    const at = this.#room(8);
    this.#view.setBigUint64(at, BigInt(value), true);
  }

  string(text: string): void {
    const bytes = new TextEncoder().encode(text);
    this.u64(bytes.length);
    const at = this.#room(bytes.length);
    this.#bytes.set(bytes, at);
  }

  value(type: GgufScalarType, value: Scalar): void {
    if (type === "string") {
      this.string(String(value));
      return;
    }
    const [size, set] = scalarWriters[type];
    const at = this.#room(size);
    set(this.#view, at, value);
  }

  padded(alignment: number): Uint8Array {
    this.#room((alignment - (this.#length % alignment)) % alignment);
    return this.#bytes.subarray(0, this.#length);
  }
}

type Scalar = number | bigint | boolean | string;
type ScalarWriter = readonly [size: number, set: (view: DataView, at: number, value: Scalar) => void];

const scalarWriters: Record<Exclude<GgufScalarType, "string">, ScalarWriter> = {
  u8: [1, (view, at, value) => view.setUint8(at, Number(value))],
  i8: [1, (view, at, value) => view.setInt8(at, Number(value))],
  bool: [1, (view, at, value) => view.setUint8(at, Number(value))],
  u16: [2, (view, at, value) => view.setUint16(at, Number(value), true)],
  i16: [2, (view, at, value) => view.setInt16(at, Number(value), true)],
  u32: [4, (view, at, value) => view.setUint32(at, Number(value), true)],
  i32: [4, (view, at, value) => view.setInt32(at, Number(value), true)],
  f32: [4, (view, at, value) => view.setFloat32(at, Number(value), true)],
  u64: [8, (view, at, value) => view.setBigUint64(at, BigInt(value), true)],
  i64: [8, (view, at, value) => view.setBigInt64(at, BigInt(value), true)],
  f64: [8, (view, at, value) => view.setFloat64(at, Number(value), true)],
};
