// Small files made by hand, right or wrong, for tests of the readers.

import type { GgufValue } from "../../src/checkpoint/writers.ts";

/** A safetensors file of any header and data. */
export function safetensorsBytes(header: string | Uint8Array, data: Uint8Array): Buffer {
  const text = Buffer.from(header);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([length, text, data]);
}

export interface GgufTensor {
  readonly name: string;
  readonly shape: readonly number[];
  /** The type's id in the file; bytes are written as for f32, whatever it is. */
  readonly type: number;
  /** Where the info says that it begins, if not where it does. */
  readonly offset?: number;
}

const typeIds = ["u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"];

/** A GGUF file whose tensors are zeros, at an alignment of 32. */
export function ggufBytes(metadata: ReadonlyMap<string, GgufValue>, tensors: readonly GgufTensor[]): Buffer {
  const parts: Buffer[] = [Buffer.from("GGUF"), u32(3), u64(tensors.length), u64(metadata.size)];
  for (const [key, entry] of metadata) {
    parts.push(string(key), u32(typeIds.indexOf(entry.type)));
    if (entry.type !== "array") parts.push(scalar(entry.type, entry.value));
    else {
      parts.push(u32(typeIds.indexOf(entry.of)), u64(entry.values.length));
      for (const value of Array.from(entry.values)) parts.push(scalar(entry.of, value));
    }
  }
  let next = 0;
  for (const { name, shape, type, offset } of tensors) {
    parts.push(string(name), u32(shape.length), ...[...shape].reverse().map(u64), u32(type), u64(offset ?? next));
    const bytes = 4 * shape.reduce((a, b) => a * b, 1);
    if (bytes < 2 ** 24) next += Math.ceil(bytes / 32) * 32; // a tensor that overflows has no bytes
  }
  const header = Buffer.concat(parts);
  return Buffer.concat([header, Buffer.alloc((32 - (header.length % 32)) % 32), Buffer.alloc(next)]);
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

function u64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}

function string(text: string): Buffer {
  return Buffer.concat([u64(Buffer.byteLength(text)), Buffer.from(text)]);
}

function scalar(type: string, value: number | bigint | boolean | string): Buffer {
  if (type === "string") return string(String(value));
  if (type === "bool") return Buffer.of(Number(value));
  if (type === "u32" || type === "i32") return u32(Number(value) >>> 0);
  const bytes = Buffer.alloc(4);
  bytes.writeFloatLE(Number(value));
  return bytes;
}
