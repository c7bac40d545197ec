// Checkpoints for tests: opened, and converted.

import { type ConvertOptions, convert } from "../../src/checkpoint/convert.ts";
import { type Checkpoint, type CheckpointOptions, openCheckpoint } from "../../src/checkpoint/open.ts";

/** Opens a checkpoint for as long as `body` takes. */
export async function using<T>(
  path: string,
  body: (c: Checkpoint) => Promise<T>,
  options?: CheckpointOptions,
): Promise<T> {
  const checkpoint = await openCheckpoint(path, options);
  try {
    return await body(checkpoint);
  } finally {
    await checkpoint.close();
  }
}

/** Converts a checkpoint, whatever the format cannot say of it; returns `out`. */
export async function converted(from: string, out: string, options: ConvertOptions = {}): Promise<string> {
  await using(from, (checkpoint) => convert(checkpoint, out, { allowLossy: true, ...options }));
  return out;
}
