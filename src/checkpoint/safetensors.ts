// safetensors: header length (u64), a JSON header { name: { dtype, shape, data_offsets } }, the tensors' bytes.
// Every number of the header is checked against the file before it is used.

import { dtypeOfSafetensors } from "../tensor/dtype.ts";
import { CheckpointError } from "../tensor/errors.ts";
import { type ByteSource, storedBytes, type TensorView } from "../tensor/tensor.ts";
import { isObject, type Json, parseObject, show } from "./json.ts";

const longestHeader = 32 * 2 ** 20; // the largest published, of unfused experts, has about 4 MB
const mostParts = 2 ** 20; // brackets and commas; an entry has eight

/** The tensors of one file, in the order of its bytes. */
export async function readSafetensors(source: ByteSource): Promise<TensorView[]> {
  const { name, byteLength } = source;
  if (byteLength < 8) throw new CheckpointError(`${name} has ${byteLength} bytes; a safetensors file has at least 8`);
  const prefix = await source.read(0, 8);
  const length = new DataView(prefix.buffer, prefix.byteOffset).getBigUint64(0, true);
  if (length > longestHeader && 8 + Number(length) <= byteLength)
    throw new CheckpointError(`${name}: its header has ${length} bytes; expected at most ${longestHeader}`);
  if (8 + Number(length) > byteLength)
    throw new CheckpointError(
      `${name}: its header says it has ${length} bytes and the file has ${byteLength}; it is no safetensors file or truncated`,
    );
  const dataStart = 8 + Number(length);
  const text = decodeUtf8(await source.read(8, Number(length)), name);
  const header = parseObject(text, `${name}: header`, { mostParts, uniqueKeys: true });
  const dataBytes = byteLength - dataStart;
  const views: TensorView[] = [];
  for (const [tensor, entry] of Object.entries(header)) {
    if (tensor === "__metadata__") continue;
    views.push(readEntry(source, tensor, entry, dataStart, dataBytes));
  }
  const sorted = checkOverlaps(views, name);
  const end = sorted.reduce((most, view) => Math.max(most, view.offset + storedBytes(view)), dataStart);
  if (end !== byteLength)
    throw new CheckpointError(
      `${name}: ${byteLength - end} bytes follow the last tensor; expected none, the file is corrupt`,
    );
  return sorted;
}

/** The files of a sharded checkpoint, from `model.safetensors.index.json`: tensor name -> file name. */
export function readIndex(text: string, name: string): Map<string, string> {
  const map = parseObject(text, name)["weight_map"];
  if (!isObject(map)) throw new CheckpointError(`${name}: weight_map is ${show(map)}; expected an object`);
  const files = new Map<string, string>();
  for (const [tensor, file] of Object.entries(map)) {
    if (typeof file !== "string" || !/^[\w.-]+$/.test(file) || file.startsWith("."))
      throw new CheckpointError(`${name}: the file of ${show(tensor)} is ${show(file)}; expected a name in its folder`);
    files.set(tensor, file);
  }
  return files;
}

function readEntry(source: ByteSource, name: string, entry: unknown, dataStart: number, dataBytes: number): TensorView {
  const bad = (what: string, found: unknown, expected: string) =>
    new CheckpointError(`${source.name}: ${what} of ${show(name)} is ${show(found)}; expected ${expected}`);
  if (!isObject(entry)) throw bad("the entry", entry, "dtype, shape and data_offsets");
  const { dtype: called, shape, data_offsets: range } = entry as Json;
  const dtype = typeof called === "string" ? dtypeOfSafetensors(called) : undefined;
  // BOOL, U8 and 64-bit types of other models have no place here.
  if (!dtype) throw bad("the dtype", called, "F32, F16, BF16, F64, F8_E4M3 or I8 to I64");
  if (!Array.isArray(shape) || extentProduct(shape) === undefined)
    throw bad("the shape", shape, "at most 8 extents whose product is below 2⁵³");
  const whole = Array.isArray(range) && range.length === 2 && range.every((x) => Number.isSafeInteger(x) && x >= 0);
  const [begin, end] = whole ? (range as [number, number]) : [-1, -1];
  if (!whole || end < begin || end > dataBytes)
    throw bad("the byte range", range, `begin and end within the file's ${dataBytes} bytes of data`);
  const bytes = storedBytes({ dtype, shape });
  if (end - begin !== bytes) throw bad("the byte range", range, `${bytes} bytes for ${called} ${show(shape)}`);
  return { name, dtype, shape, source, offset: dataStart + begin };
}

/** The product of extents, or undefined where it is no number of elements. */
export function extentProduct(extents: readonly unknown[]): number | undefined {
  if (extents.length > 8) return undefined;
  let product = 1;
  let nonZero = 1; // so that a zero does not hide an overflow
  for (const extent of extents) {
    if (typeof extent !== "number" || !Number.isSafeInteger(extent) || extent < 0) return undefined;
    product *= extent;
    nonZero *= extent || 1;
  }
  return Number.isSafeInteger(nonZero) ? product : undefined;
}

/** The views in the order of their bytes; throws where two share a byte. */
export function checkOverlaps(views: readonly TensorView[], file: string): TensorView[] {
  const sorted = [...views].sort((a, b) => a.offset - b.offset || storedBytes(a) - storedBytes(b));
  for (let i = 1; i < sorted.length; i++) {
    const [before, after] = [sorted[i - 1]!, sorted[i]!];
    if (before.offset + storedBytes(before) > after.offset)
      throw new CheckpointError(
        `${file}: ${show(before.name)} and ${show(after.name)} share bytes at ${after.offset}; expected tensors apart`,
      );
  }
  return sorted;
}

/** Text that must be UTF-8. */
export function decodeUtf8(bytes: Uint8Array, name: string): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw new CheckpointError(`${name}: the header is not UTF-8 text; the file is corrupted or of another kind`);
  }
}
