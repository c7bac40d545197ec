// Where a checkpoint's bytes come from: a file, memory (tests), or ranges of other sources put together.

import { type FileHandle, open } from "node:fs/promises";
import { basename } from "node:path";
import { CheckpointError } from "../tensor/errors.ts";
import type { ByteSource, Piece } from "../tensor/tensor.ts";

/** A file; `close` it when nothing reads from it any more. */
export interface FileSource extends ByteSource {
  readonly path: string;
  close(): Promise<void>;
}

/** Opens a file for reading at any offset, above 4 GiB too. */
export async function openFile(path: string): Promise<FileSource> {
  let file: FileHandle;
  try {
    file = await open(path, "r");
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException; // what node:fs rejects with
    const reason =
      code === "ENOENT" ? "no such file" : code === "EACCES" ? "not readable for this user" : String(error);
    throw new CheckpointError(`${path}: ${reason}`);
  }
  const stat = await file.stat();
  if (!stat.isFile()) {
    await file.close();
    throw new CheckpointError(`${path} is a folder or a device; expected a file`);
  }
  const name = basename(path);
  return {
    name,
    path,
    byteLength: stat.size,
    async read(offset, length) {
      checkRange(name, offset, length, stat.size);
      const out = new Uint8Array(length);
      for (let done = 0; done < length; ) {
        const { bytesRead } = await file.read(out, done, length - done, offset + done);
        if (bytesRead === 0) throw new CheckpointError(`${name} ends at byte ${offset + done}; it was cut while open`);
        done += bytesRead;
      }
      return out;
    },
    close: () => file.close(),
  };
}

/** Bytes in memory under a file's name. */
export function memorySource(bytes: Uint8Array, name = "memory"): ByteSource {
  return {
    name,
    byteLength: bytes.length,
    async read(offset, length) {
      checkRange(name, offset, length, bytes.length);
      return new Uint8Array(bytes.subarray(offset, offset + length)); // a copy; Buffer.slice makes none
    },
  };
}

/** `rows` rows, each the pieces' runs side by side: shards that are joined along an inner axis, or, as one row, end to end. */
export function sideBySide(name: string, rows: number, pieces: readonly Piece[]): ByteSource {
  const rowLength = pieces.reduce((sum, { run }) => sum + run, 0);
  const byteLength = rows * rowLength;
  return {
    name,
    byteLength,
    composition: { rows, pieces },
    async read(offset, length) {
      checkRange(name, offset, length, byteLength);
      const out = new Uint8Array(length);
      if (length === 0) return out;
      const first = Math.floor(offset / rowLength);
      const last = Math.floor((offset + length - 1) / rowLength);
      let column = 0; // of the piece's first byte, in a row
      for (const { source, offset: base, run } of pieces) {
        // The bytes asked for may begin and end inside a run; what a piece gives is one range of its source.
        const from = first * run + clamp(offset - first * rowLength - column, 0, run);
        const to = last * run + clamp(offset + length - last * rowLength - column, 0, run);
        if (to > from) {
          const bytes = await source.read(base + from, to - from);
          for (let at = from; at < to; ) {
            const row = Math.floor(at / run);
            const end = Math.min(to, (row + 1) * run);
            out.set(bytes.subarray(at - from, end - from), row * rowLength + column + (at - row * run) - offset);
            at = end;
          }
        }
        column += run;
      }
      return out;
    },
  };
}

/** Elements of `size` bytes that `make` computes when they are asked for: `n` of them from the one numbered `first`. */
export function computed(
  name: string,
  size: number,
  elements: number,
  make: (first: number, n: number) => Promise<Uint8Array>,
): ByteSource {
  const byteLength = elements * size;
  return {
    name,
    byteLength,
    async read(offset, length) {
      checkRange(name, offset, length, byteLength);
      const first = Math.floor(offset / size);
      const end = Math.ceil((offset + length) / size);
      const bytes = await make(first, end - first);
      return bytes.subarray(offset - first * size, offset - first * size + length);
    },
  };
}

const clamp = (x: number, low: number, high: number) => Math.min(high, Math.max(low, x));

function checkRange(name: string, offset: number, length: number, byteLength: number): void {
  if (!(Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length >= 0))
    throw new RangeError(`${name}: bytes ${offset} to ${offset + length} are no range`);
  if (offset + length > byteLength)
    throw new CheckpointError(
      `${name} has ${byteLength} bytes; expected ${length} more at ${offset}: it is truncated, fetch it again`,
    );
}
