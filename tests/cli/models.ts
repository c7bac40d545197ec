// Small random checkpoints in a folder of their own, made by the command line itself.

import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { llama4 } from "./llama4.ts";

export interface Place {
  readonly folder: string;
  /** A path in the folder. */
  at(name: string): string;
  remove(): void;
}

export function temporaryPlace(): Place {
  const folder = mkdtempSync(join(tmpdir(), "llama4-cli-"));
  return { folder, at: (name) => join(folder, name), remove: () => rmSync(folder, { recursive: true, force: true }) };
}

/** Two layers, four experts, a byte-level vocabulary of 512. */
export const tinySizes = [
  ...["--layers", "2", "--dim", "64", "--heads", "4", "--kv-heads", "2", "--head-dim", "16", "--ffn", "64"],
  ...["--expert-ffn", "64", "--experts", "4", "--chunk", "32", "--vocab", "512", "--vision", "off", "--dtype", "f32"],
];

export async function initTiny(path: string, ...more: readonly string[]): Promise<string> {
  const { status, stderr } = await llama4(["init", "scout", path, ...tinySizes, ...more]);
  if (status !== 0) throw new Error(`llama4 init: ${stderr}`);
  return path;
}

/** The tensors of a safetensors file. */
export function safetensors(path: string) {
  const file = readFileSync(path);
  const length = Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.toString("utf8", 8, 8 + length));
  const bytes = (name: string) => {
    const [from, to] = header[name].data_offsets;
    return file.buffer.slice(file.byteOffset + 8 + length + from, file.byteOffset + 8 + length + to) as ArrayBuffer;
  };
  return { header, bytes };
}
