// A teacher's answers in a file, appended as they are made (src/train/distil.ts says whose and for what):
//
//     header   "L4SOFT1\n", V and k as u32, then 32 bytes that tell which teacher
//     records  key 16 bytes, length of the payload as u32, payload (src/train/soft-targets.ts), CRC-32 of all before
//
// All little-endian. A record is written at once; what a killed run left of one is cut off when the file is opened.

import { createHash } from "node:crypto";
import { type FileHandle, open } from "node:fs/promises";
import { basename } from "node:path";
import { crc32 } from "node:zlib";
import type { Checkpoint } from "../checkpoint/open.ts";
import { RequestError } from "../tensor/errors.ts";
import { storedBytes } from "../tensor/tensor.ts";
import type { TargetStore } from "../train/distil.ts";
import { softRowBytes } from "../train/soft-targets.ts";

const magic = "L4SOFT1\n";
const headerBytes = 8 + 4 + 4 + 32;
const keyBytes = 16;
const frameBytes = keyBytes + 4 + 4;

export interface StoreOptions {
  readonly vocabSize: number;
  readonly k: number;
  /** Of `fingerprint`. */
  readonly teacher: Uint8Array;
  readonly onWarning?: (message: string) => void;
}

interface Place {
  readonly offset: number;
  readonly length: number;
}

/** Soft targets of one teacher in a file, by the key of the segment they are for. One process may write at a time. */
export class TargetFile implements TargetStore {
  readonly #file: FileHandle;
  readonly #places: Map<string, Place>;
  #end: number;

  private constructor(file: FileHandle, places: Map<string, Place>, end: number) {
    this.#file = file;
    this.#places = places;
    this.#end = end;
  }

  /** Opens a file of this teacher's answers, or begins one. Throws RequestError for one of another teacher. */
  static async open(path: string, { vocabSize, k, teacher, onWarning }: StoreOptions): Promise<TargetFile> {
    const file = await open(path, "a+");
    try {
      const header = Buffer.alloc(headerBytes);
      header.write(magic);
      header.writeUInt32LE(vocabSize, 8);
      header.writeUInt32LE(k, 12);
      header.set(teacher, 16);
      const { size } = await file.stat();
      const found = await read(file, 0, Math.min(size, headerBytes));
      if (header.indexOf(found) === 0 && size < headerBytes) {
        await file.truncate(0); // new, or killed as it began
        await file.write(header);
        return new TargetFile(file, new Map(), headerBytes);
      }
      if (!found.equals(header))
        throw new RequestError(
          `${path} ${unlike(found, header)}; expected what this teacher said: name another file as teacher.store`,
        );
      const { places, end } = await scan(file, size, softRowBytes(k, vocabSize));
      if (end < size) {
        onWarning?.(`${basename(path)}: ${size - end} bytes at its end are no whole answer and are cut off`);
        await file.truncate(end);
      }
      return new TargetFile(file, places, end);
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /** Answers that are there. */
  get count(): number {
    return this.#places.size;
  }

  async get(key: string): Promise<Uint8Array | undefined> {
    const place = this.#places.get(key);
    return place && read(this.#file, place.offset, place.length);
  }

  async put(key: string, payload: Uint8Array): Promise<void> {
    const record = Buffer.alloc(frameBytes + payload.length);
    record.write(key, "hex");
    record.writeUInt32LE(payload.length, keyBytes);
    record.set(payload, keyBytes + 4);
    record.writeUInt32LE(crc32(record.subarray(0, -4)), record.length - 4);
    await this.#file.write(record); // at the end: the file was opened to append
    this.#places.set(key, { offset: this.#end + keyBytes + 4, length: payload.length });
    this.#end += record.length;
  }

  async close(): Promise<void> {
    await this.#file.sync();
    await this.#file.close();
  }
}

async function read(file: FileHandle, offset: number, length: number): Promise<Buffer> {
  const bytes = Buffer.alloc(length);
  for (let done = 0; done < length; ) {
    const { bytesRead } = await file.read(bytes, done, length - done, offset + done);
    if (bytesRead === 0) return bytes.subarray(0, done);
    done += bytesRead;
  }
  return bytes;
}

const scanBytes = 8 * 2 ** 20;

/** The whole records from the first on, and where they end. */
async function scan(file: FileHandle, size: number, rowBytes: number) {
  const places = new Map<string, Place>();
  let at = headerBytes;
  let block: Buffer = Buffer.alloc(0);
  let start = at; // of the block in the file
  while (at + frameBytes <= size) {
    const here = async (bytes: number) => {
      if (at + bytes > start + block.length) {
        block = await read(file, at, Math.min(size - at, Math.max(scanBytes, bytes)));
        start = at;
      }
      return block.subarray(at - start, at - start + bytes);
    };
    const length = (await here(keyBytes + 4)).readUInt32LE(keyBytes);
    if (length % rowBytes !== 0 || at + frameBytes + length > size) break;
    const record = await here(frameBytes + length);
    if (crc32(record.subarray(0, -4)) !== record.readUInt32LE(record.length - 4)) break;
    places.set(record.toString("hex", 0, keyBytes), { offset: at + keyBytes + 4, length });
    at += record.length;
  }
  return { places, end: at };
}

function unlike(found: Buffer, wanted: Buffer): string {
  if (found.length < headerBytes || found.toString("latin1", 0, 8) !== magic) return "holds no answers of a teacher";
  const [V, k] = [found.readUInt32LE(8), found.readUInt32LE(12)];
  if (V !== wanted.readUInt32LE(8)) return `is of a vocabulary of ${V} tokens`;
  return k === wanted.readUInt32LE(12) ? "holds what another teacher said" : `holds the ${k} likeliest tokens`;
}

const sampleBytes = 4096;

/** Tells a teacher from others: a digest of its config and of the first bytes of every tensor. */
export async function fingerprint({ config, tensors }: Checkpoint): Promise<Uint8Array> {
  const hash = createHash("sha256").update(JSON.stringify(config));
  for (const { name, dtype, shape, source, offset } of tensors) {
    hash.update(`${name} ${dtype} ${shape}`);
    hash.update(await source.read(offset, Math.min(sampleBytes, storedBytes({ dtype, shape }))));
  }
  return hash.digest();
}
