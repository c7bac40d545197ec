// A model for a command, loaded with a bar on stderr, and its replies.

import { type Llama4, type LoadOptions, load, type Piece } from "../index.ts";
import { progress, type Session, withFlags } from "./answer.ts";
import type { ModelOptions } from "./options.ts";

/** The model that the options name, or the one that ships. */
export async function openModel(
  { model, backend, threads, context, mmproj, adapter, kvDtype }: ModelOptions,
  { signal, thread }: Session,
  more: Pick<LoadOptions, "activations" | "sequences" | "stepTokens" | "speculation"> = {},
): Promise<Llama4> {
  const bar = progress("loading");
  try {
    return await load(model, {
      ...{ backend, threads, context, mmproj, adapter, kvDtype, signal, thread, onProgress: bar.update },
      ...more,
      onWarning: (message) => process.stderr.write(`${withFlags(message)}\n`),
    });
  } finally {
    bar.stop();
  }
}

/** A reply as one object; `onText` hears it piece by piece. */
export async function collected(model: Llama4, reply: AsyncIterable<Piece>, onText: (text: string) => void) {
  const tokens: number[] = [];
  let text = "";
  for await (const piece of reply) {
    tokens.push(...piece.tokens);
    text += piece.text;
    onText(piece.text);
    const { finishReason, usage, timings } = piece;
    if (!finishReason || !usage || !timings) continue;
    const { prefillMs, decodeMs, prefillTokensPerSecond, decodeTokensPerSecond } = timings;
    const { guessedTokens, acceptedTokens, encodedTiles, encodeMs } = timings;
    return {
      ...{ text, tokens, finishReason },
      promptTokens: usage.promptTokens,
      cachedTokens: usage.cachedTokens,
      timings: {
        loadMs: model.info.loadMs,
        ...{ prefillMs, decodeMs, prefillTokensPerSecond, decodeTokensPerSecond, guessedTokens, acceptedTokens },
        ...{ encodedTiles, encodeMs },
      },
    };
  }
  throw new Error("the reply ended without a reason");
}
