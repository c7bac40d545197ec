// The stored (uncompressed) entries of a zip archive, zip64 included: PyTorch's container.

import { CheckpointError } from "../tensor/errors.ts";
import type { ByteSource } from "../tensor/tensor.ts";
import { show } from "./json.ts";

/** A range of bytes of the archive. */
export interface ZipEntry {
  readonly offset: number;
  readonly byteLength: number;
}

/** Entry name -> where its bytes stand. */
export async function readZip(source: ByteSource): Promise<Map<string, ZipEntry>> {
  const { name, byteLength } = source;
  const bad = (what: string) => new CheckpointError(`${name}: ${what}; it is truncated or no archive of PyTorch's`);
  const { start, length, count } = await findDirectory(source, bad);
  if (!(start + length <= byteLength && count * 46 <= length)) throw bad("its directory lies outside the file");
  const directory = await source.read(start, length);
  const view = new DataView(directory.buffer, directory.byteOffset, length);
  const entries = new Map<string, ZipEntry>();
  for (let at = 0, i = 0; i < count; i++) {
    if (at + 46 > length || view.getUint32(at, true) !== 0x02014b50) throw bad("its directory is damaged");
    const [nameLength, extraLength, commentLength] = [28, 30, 32].map((o) => view.getUint16(at + o, true)) as Triple;
    const end = at + 46 + nameLength + extraLength + commentLength;
    if (end > length) throw bad("its directory is damaged");
    const entry = new TextDecoder().decode(directory.subarray(at + 46, at + 46 + nameLength));
    if (view.getUint16(at + 10, true) !== 0)
      throw new CheckpointError(
        `${name}: ${show(entry)} is compressed; expected stored entries, save it with torch.save`,
      );
    const sizes = wideSizes(view, at, nameLength, extraLength, bad);
    if (sizes.packed !== sizes.size) throw bad(`${show(entry)} has two sizes`);
    if (entries.has(entry)) throw bad(`${show(entry)} is there twice`);
    entries.set(entry, { offset: await dataOffset(source, sizes.local, bad), byteLength: sizes.size });
    if (entries.get(entry)!.offset + sizes.size > byteLength) throw bad(`${show(entry)} reaches beyond the end`);
    at = end;
  }
  return entries;
}

type Triple = [number, number, number];
type Bad = (what: string) => CheckpointError;

/** The end record stands last, before a comment of up to 64 KiB; zip64 puts another before it. */
async function findDirectory(source: ByteSource, bad: Bad) {
  const tailLength = Math.min(source.byteLength, 65536 + 22 + 20);
  const tailStart = source.byteLength - tailLength;
  const tail = await source.read(tailStart, tailLength);
  const view = new DataView(tail.buffer, tail.byteOffset, tailLength);
  let end = tailLength - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) throw bad("no end of a zip directory");
  const narrow = {
    count: view.getUint16(end + 10, true),
    length: view.getUint32(end + 12, true),
    start: view.getUint32(end + 16, true),
  };
  if (narrow.count !== 0xffff && narrow.length !== 0xffffffff && narrow.start !== 0xffffffff) return narrow;
  const locator = end - 20;
  if (locator < 0 || view.getUint32(locator, true) !== 0x07064b50) throw bad("no zip64 directory");
  const at = safe(view.getBigUint64(locator + 8, true), bad);
  if (at + 56 > source.byteLength) throw bad("its zip64 directory lies outside the file");
  const record = await source.read(at, 56);
  const wide = new DataView(record.buffer, record.byteOffset, 56);
  if (wide.getUint32(0, true) !== 0x06064b50) throw bad("its zip64 directory is damaged");
  const [count, length, start] = [32, 40, 48].map((o) => safe(wide.getBigUint64(o, true), bad)) as Triple;
  return { count, length, start };
}

/** Sizes and place of an entry; each that is 2³² - 1 stands as 64 bits in the extra field 1, in this order. */
function wideSizes(view: DataView, at: number, nameLength: number, extraLength: number, bad: Bad) {
  const values = [24, 20, 42].map((o) => view.getUint32(at + o, true)) as Triple; // size, packed size, place
  if (values.every((value) => value !== 0xffffffff)) return { size: values[0], packed: values[1], local: values[2] };
  let extra = at + 46 + nameLength;
  const extraEnd = extra + extraLength;
  while (extra + 4 <= extraEnd && view.getUint16(extra, true) !== 1) extra += 4 + view.getUint16(extra + 2, true);
  extra += 4;
  const wide = values.map((value) => {
    if (value !== 0xffffffff) return value;
    if (extra + 8 > extraEnd) throw bad("a zip64 size is missing");
    extra += 8;
    return safe(view.getBigUint64(extra - 8, true), bad);
  }) as Triple;
  return { size: wide[0], packed: wide[1], local: wide[2] };
}

/** Data follow the local header, whose own name and extra field pad them to their alignment. */
async function dataOffset(source: ByteSource, local: number, bad: Bad): Promise<number> {
  if (local + 30 > source.byteLength) throw bad("an entry lies outside the file");
  const header = await source.read(local, 30);
  const view = new DataView(header.buffer, header.byteOffset, 30);
  if (view.getUint32(0, true) !== 0x04034b50) throw bad("an entry's header is damaged");
  return local + 30 + view.getUint16(26, true) + view.getUint16(28, true);
}

function safe(value: bigint, bad: Bad): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw bad(`a size of ${value}`);
  return Number(value);
}
