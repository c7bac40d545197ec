// GGUF, versions 2 and 3 (gguf.md §1): metadata, tensor infos, padding, data. Every count and offset is checked against
// what the file can hold before anything is allocated for it.

import { dtypeOfGgml, dtypes, ggmlTypeName } from "../tensor/dtype.ts";
import { CheckpointError } from "../tensor/errors.ts";
import { type ByteSource, storedBytes, type TensorView } from "../tensor/tensor.ts";
import { show } from "./json.ts";
import { checkOverlaps, extentProduct } from "./safetensors.ts";
import type { GgufScalarType, GgufValue } from "./writers.ts";

export interface GgufFile {
  readonly metadata: ReadonlyMap<string, GgufValue>;
  /** In the order of the file's bytes; shapes as elsewhere, the contiguous axis last. */
  readonly tensors: readonly TensorView[];
}

/** Reads one file, or one part of a split. */
export async function readGguf(source: ByteSource): Promise<GgufFile> {
  const cursor = new Cursor(source);
  await cursor.ahead(24);
  if (cursor.u32() !== 0x46554747)
    throw new CheckpointError(`${source.name} is no GGUF file: its first four bytes are not "GGUF"`);
  const version = cursor.u32();
  if (version !== 2 && version !== 3)
    throw new CheckpointError(
      `${source.name}: GGUF version ${version}${version >>> 16 ? ", perhaps of a big-endian machine" : ""}; expected 2 or 3`,
    );
  const tensorCount = cursor.count(24, mostTensors); // an info has at least a name's length, an axis count, a type, an offset
  const keyCount = cursor.count(13, mostKeys); // an entry has at least a key's length, a type and one byte
  const metadata = new Map<string, GgufValue>();
  for (let i = 0; i < keyCount; i++) {
    const key = await cursor.string(longestName);
    if (metadata.has(key)) throw new CheckpointError(`${source.name}: the key ${show(key)} is there twice`);
    const value = await readValue(cursor, key);
    if (value) metadata.set(key, value);
  }
  const infos: Info[] = [];
  const names = new Set<string>();
  for (let i = 0; i < tensorCount; i++) {
    const info = await readInfo(cursor);
    if (names.has(info.name))
      throw new CheckpointError(`${source.name}: the tensor ${show(info.name)} is there twice; expected each once`);
    names.add(info.name);
    infos.push(info);
  }
  const alignment = alignmentOf(metadata, source.name);
  const dataStart = Math.ceil(cursor.at / alignment) * alignment;
  const tensors = infos.map((info) => view(source, info, dataStart, alignment));
  return { metadata, tensors: checkOverlaps(tensors, source.name) };
}

/** The names of all parts of a split, from the name of any; a file that is none stands alone. */
export function splitNames(name: string): string[] {
  const match = /^(.*)-(\d{5})-of-(\d{5})\.gguf$/.exec(name);
  if (!match) return [name];
  const count = Number(match[3]);
  if (count < 1 || Number(match[2]) < 1 || Number(match[2]) > count)
    throw new CheckpointError(`${name}: part ${match[2]} of ${match[3]}; expected a part from 1 to their number`);
  return Array.from({ length: count }, (_, i) => `${match[1]}-${String(i + 1).padStart(5, "0")}-of-${match[3]}.gguf`);
}

function alignmentOf(metadata: ReadonlyMap<string, GgufValue>, name: string): number {
  const entry = metadata.get("general.alignment");
  if (entry === undefined) return 32;
  const value = entry.type === "array" ? Number.NaN : Number(entry.value);
  if (!Number.isInteger(value) || value < 8 || value > 2 ** 24 || value % 8 !== 0)
    throw new CheckpointError(`${name}: general.alignment is ${show(value)}; expected a multiple of 8 up to 2²⁴`);
  return value;
}

interface Info {
  readonly name: string;
  /** As stored: the contiguous axis first. */
  readonly extents: readonly number[];
  readonly type: number;
  readonly offset: number;
}

async function readInfo(cursor: Cursor): Promise<Info> {
  const name = await cursor.string(longestName);
  await cursor.ahead(4 + 8 * 8 + 12);
  const axes = cursor.u32();
  if (axes > 8) throw new CheckpointError(`${cursor.source.name}: ${show(name)} has ${axes} axes; expected at most 8`);
  const extents = Array.from({ length: axes }, () => cursor.u64(`an extent of ${show(name)}`));
  const type = cursor.u32();
  return { name, extents, type, offset: cursor.u64(`the offset of ${show(name)}`) };
}

function view(
  source: ByteSource,
  { name, extents, type, offset }: Info,
  dataStart: number,
  alignment: number,
): TensorView {
  const bad = (sentence: string) => new CheckpointError(`${source.name}: ${show(name)} ${sentence}`);
  const dtype = dtypeOfGgml(type);
  if (!dtype) throw bad(`has the type ${ggmlTypeName(type)} (${type}), which is not read; convert the file to another`);
  const { blockElements } = dtypes[dtype];
  const shape = [...extents].reverse();
  if (extentProduct(extents) === undefined)
    throw bad(`is [${extents.join(", ")}]; expected extents whose product is below 2⁵³`);
  if ((extents[0] ?? 1) % blockElements !== 0)
    throw bad(`has rows of ${extents[0]} elements; ${dtype} needs a multiple of ${blockElements}`);
  const bytes = storedBytes({ dtype, shape });
  if (offset % alignment !== 0) throw bad(`begins at ${offset}; expected a multiple of ${alignment}`);
  if (dataStart + offset + bytes > source.byteLength)
    throw bad(
      `needs ${bytes} bytes at ${dataStart + offset} and the file has ${source.byteLength}; it is truncated, fetch it again`,
    );
  return { name, dtype, shape, source, offset: dataStart + offset };
}

const scalarBytes: Readonly<Record<Exclude<GgufScalarType, "string">, number>> = {
  u8: 1,
  i8: 1,
  bool: 1,
  u16: 2,
  i16: 2,
  u32: 4,
  i32: 4,
  f32: 4,
  u64: 8,
  i64: 8,
  f64: 8,
};
// By type id; 9 is an array.
const typeNames: readonly (GgufScalarType | "array")[] = [
  ..."u8 i8 u16 i16 u32 i32 f32 bool string".split(" "),
  "array",
  ..."u64 i64 f64".split(" "),
] as (GgufScalarType | "array")[]; // the words are those of the type

/** The value of a key; an array of arrays is walked over and not kept, no key of this architecture has one. */
async function readValue(cursor: Cursor, key: string): Promise<GgufValue | undefined> {
  await cursor.ahead(12);
  const type = typeNames[cursor.u32()];
  if (!type) throw cursor.bad(`the type of ${show(key)}`, "0 to 12");
  if (type === "array") return readArray(cursor, key);
  if (type === "string") return { type, value: await cursor.string() };
  await cursor.ahead(8);
  return { type, value: cursor.scalar(type, key) };
}

async function readArray(cursor: Cursor, key: string, depth = 0): Promise<GgufValue | undefined> {
  if (depth > 8) throw new CheckpointError(`${cursor.source.name}: ${show(key)} nests arrays deeper than 8`);
  await cursor.ahead(12);
  const of = typeNames[cursor.u32()];
  if (!of) throw cursor.bad(`the element type of ${show(key)}`, "0 to 12");
  if (of === "array") {
    for (let n = cursor.count(12); n > 0; n--) await readArray(cursor, key, depth + 1);
    return undefined;
  }
  if (of === "string") {
    const values: string[] = [];
    for (let n = cursor.count(8, mostTexts); n > 0; n--) values.push(cursor.stringAtHand() ?? (await cursor.string()));
    return { type: "array", of, values };
  }
  const n = cursor.count(scalarBytes[of]);
  return { type: "array", of, values: await cursor.numbers(of, n) };
}

const windowBytes = 1 << 20;

// What a file may make us hold beyond its own bytes: an entry costs up to some hundred bytes once it is read.
const longestName = 65535;
const longestText = 2 ** 24;
const mostKeys = 2 ** 16;
const mostTensors = 2 ** 17;
const mostTexts = 2 ** 20; // Llama 4's vocabulary has 202,048 and twice as many merges

/** Reads on through a source, a window at a time. */
class Cursor {
  readonly source: ByteSource;
  #bytes: Uint8Array = new Uint8Array(0);
  #view = new DataView(this.#bytes.buffer);
  /** Where the window begins in the source, and the next byte in the window. */
  #base = 0;
  #next = 0;

  constructor(source: ByteSource) {
    this.source = source;
  }

  get at(): number {
    return this.#base + this.#next;
  }

  bad(what: string, expected: string): CheckpointError {
    return new CheckpointError(`${this.source.name}: ${what} before byte ${this.at} is wrong; expected ${expected}`);
  }

  /** Makes the next `length` bytes ready, or as many as there are. */
  async ahead(length: number): Promise<void> {
    if (this.#next + length <= this.#bytes.length) return;
    const base = this.at;
    const size = Math.min(Math.max(length, windowBytes), this.source.byteLength - base);
    this.#bytes = size > 0 ? await this.source.read(base, size) : new Uint8Array(0);
    this.#view = new DataView(this.#bytes.buffer, this.#bytes.byteOffset, this.#bytes.length);
    this.#base = base;
    this.#next = 0;
  }

  #take(length: number): number {
    if (this.#next + length > this.#bytes.length)
      throw new CheckpointError(
        `${this.source.name} ends at ${this.source.byteLength} bytes inside its header; it is truncated, fetch it again`,
      );
    this.#next += length;
    return this.#next - length;
  }

  u32(): number {
    return this.#view.getUint32(this.#take(4), true);
  }

  u64(what: string): number {
    const value = this.#view.getBigUint64(this.#take(8), true);
    if (value > BigInt(Number.MAX_SAFE_INTEGER))
      throw new CheckpointError(`${this.source.name}: ${what} is ${value}; expected less than 2⁵³`);
    return Number(value);
  }

  /** A number of things that take at least `least` bytes each. */
  count(least: number, most = Number.POSITIVE_INFINITY): number {
    const value = this.u64("a count");
    if (value * least > this.source.byteLength - this.at)
      throw new CheckpointError(
        `${this.source.name}: a count before byte ${this.at} promises ${value} entries and ${this.source.byteLength - this.at} bytes are left; it is corrupted or truncated`,
      );
    if (value > most) throw this.bad(`a count of ${value}`, `at most ${most}`);
    return value;
  }

  async string(most = longestText): Promise<string> {
    await this.ahead(8);
    const length = this.count(1);
    if (length > most) throw this.bad(`a text of ${length} bytes`, `at most ${most}`);
    await this.ahead(length);
    return this.#text(length);
  }

  /** As `string`, if the window holds all of it: hundreds of thousands of words without a promise each. */
  stringAtHand(): string | undefined {
    if (this.#next + 8 > this.#bytes.length) return undefined;
    const length = this.#view.getBigUint64(this.#next, true);
    if (length > this.#bytes.length - this.#next - 8) return undefined;
    this.#next += 8;
    return this.#text(Number(length));
  }

  #text(length: number): string {
    const at = this.#take(length);
    try {
      return strictUtf8.decode(this.#bytes.subarray(at, at + length));
    } catch {
      throw this.bad("a text", "UTF-8");
    }
  }

  scalar(type: Exclude<GgufScalarType, "string">, key: string): number | bigint | boolean {
    const at = this.#take(scalarBytes[type]);
    if (type !== "bool") return readers[type](this.#view, at);
    const value = this.#view.getUint8(at);
    if (value > 1) throw this.bad(`the truth value of ${show(key)}, ${value},`, "0 or 1");
    return value === 1;
  }

  async numbers(type: Exclude<GgufScalarType, "string">, n: number): Promise<ArrayLike<number | bigint>> {
    const length = n * scalarBytes[type];
    const bytes = new Uint8Array(length); // aligned for the array over it
    for (let done = 0; done < length; ) {
      const part = Math.min(length - done, windowBytes);
      await this.ahead(part);
      const at = this.#take(part);
      bytes.set(this.#bytes.subarray(at, at + part), done);
      done += part;
    }
    return new arrays[type](bytes.buffer);
  }
}

const strictUtf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

const readers: Record<Exclude<GgufScalarType, "string" | "bool">, (view: DataView, at: number) => number | bigint> = {
  u8: (view, at) => view.getUint8(at),
  i8: (view, at) => view.getInt8(at),
  u16: (view, at) => view.getUint16(at, true),
  i16: (view, at) => view.getInt16(at, true),
  u32: (view, at) => view.getUint32(at, true),
  i32: (view, at) => view.getInt32(at, true),
  f32: (view, at) => view.getFloat32(at, true),
  u64: (view, at) => view.getBigUint64(at, true),
  i64: (view, at) => view.getBigInt64(at, true),
  f64: (view, at) => view.getFloat64(at, true),
};

// Truth values stay bytes: 0 and 1.
const arrays = {
  u8: Uint8Array,
  i8: Int8Array,
  bool: Uint8Array,
  u16: Uint16Array,
  i16: Int16Array,
  u32: Uint32Array,
  i32: Int32Array,
  f32: Float32Array,
  u64: BigUint64Array,
  i64: BigInt64Array,
  f64: Float64Array,
};
