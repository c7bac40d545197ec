// A model for a command: loaded with a bar on stderr.

import { type Llama4, type LoadOptions, load } from "../index.ts";
import { progress, type Session } from "./answer.ts";
import type { ModelOptions } from "./options.ts";

/** The model that the options name, or the one that ships. */
export async function openModel(
  { model, backend, threads, context }: ModelOptions,
  { signal }: Session,
  more: Pick<LoadOptions, "activations" | "kvDtype" | "stepTokens"> = {},
): Promise<Llama4> {
  const bar = progress("loading");
  try {
    return await load(model, {
      ...{ backend, threads, context, signal, onProgress: bar.update },
      ...more,
      onWarning: (message) => process.stderr.write(`${message}\n`),
    });
  } finally {
    bar.stop();
  }
}
