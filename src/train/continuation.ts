// How documents go on as the model would have them: the likeliest tokens, of several documents side by side, with the keys and
// values of what was read in a cache.

import type { Llama4Config } from "../model/config.ts";
import { forward, type Step } from "../model/transformer.ts";
import type { Backend, LayerCache, Segment } from "../tensor/backend.ts";
import { rows } from "../tensor/ops.ts";
import type { Batch } from "./batches.ts";
import type { Weights } from "./leaves.ts";
import { imageRows } from "./logits.ts";

export interface Prompt {
  readonly tokens: Int32Array;
  readonly images?: Batch["images"] | undefined;
}

export interface ContinueOptions {
  /** Most tokens of a continuation, and of it with its prompt. */
  readonly most: number;
  readonly context: number;
  /** Tokens that end it, and are left out. */
  readonly stop: ReadonlySet<number>;
  readonly choose?: Step["choose"];
}

/** What each prompt goes on with. */
export async function continued(
  backend: Backend,
  weights: Weights,
  c: Llama4Config,
  prompts: readonly Prompt[],
  { most, context, stop, choose }: ContinueOptions,
): Promise<number[][]> {
  const longest = Math.max(...prompts.map(({ tokens }) => tokens.length)) + most;
  const pool = backend.kvPool({
    // a block for each, that holds all of it
    ...{ layers: c.layers.length, blocks: prompts.length, blockSize: Math.min(context, longest) },
    ...{ heads: c.nKvHeads, headDim: c.headDim, dtype: "f32" },
  });
  const cache = c.layers.map((_, layer): LayerCache => ({ pool, layer, table: (sequence) => Int32Array.of(sequence) }));
  const next = async (step: Pick<Step, "tokens" | "segments" | "wanted" | "images">): Promise<number[]> => {
    const logits = await backend.read(await forward(weights.text, c, { ...step, cache, ...(choose && { choose }) }));
    return Array.from(step.wanted, (_, i) => likeliest(logits.subarray(i * c.vocabSize, (i + 1) * c.vocabSize)));
  };
  const said = prompts.map((): number[] => []);
  /** Takes a document's next token; whether it goes on. */
  const take = (i: number, token: number): boolean => {
    if (stop.has(token)) return false;
    said[i]!.push(token);
    return said[i]!.length < most && prompts[i]!.tokens.length + said[i]!.length < context;
  };
  try {
    let running: number[] = [];
    for (const [i, prompt] of prompts.entries()) {
      if (most === 0 || prompt.tokens.length >= context) continue;
      const token = await backend.scope(async () => {
        let last: number[] = [];
        for await (const step of slices(backend, weights, c, prompt, i)) last = await next(step);
        return last[0]!;
      });
      if (take(i, token)) running.push(i);
    }
    while (running.length > 0) {
      const step = {
        tokens: Int32Array.from(running, (i) => said[i]!.at(-1)!),
        segments: running.map((i, row): Segment => {
          return { row, length: 1, position: prompts[i]!.tokens.length + said[i]!.length - 1, sequence: i };
        }),
        wanted: Int32Array.from(running.keys()),
      };
      const tokens = await backend.scope(() => next(step));
      running = running.filter((i, row) => take(i, tokens[row]!));
    }
  } finally {
    pool.close();
  }
  return said;
}

/** The steps that read a prompt: none crosses a chunk's end, the last one's last logits are wanted. */
async function* slices(
  backend: Backend,
  weights: Weights,
  c: Llama4Config,
  { tokens, images }: Prompt,
  sequence: number,
): AsyncGenerator<Pick<Step, "tokens" | "segments" | "wanted" | "images">> {
  const features = images && (await imageRows(backend, weights, c, images));
  const length = c.layers.some(({ chunked }) => chunked) ? c.attentionChunk : tokens.length;
  for (let from = 0; from < tokens.length; from += length) {
    const to = Math.min(tokens.length, from + length);
    const seen = [...(images?.at.keys() ?? [])].filter((i) => images!.at[i]! >= from && images!.at[i]! < to);
    yield {
      tokens: tokens.subarray(from, to),
      segments: [{ row: 0, length: to - from, position: from, sequence }],
      wanted: to === tokens.length ? Int32Array.of(to - from - 1) : new Int32Array(),
      ...(seen.length > 0 && {
        images: {
          rows: rows(features!, Int32Array.from(seen)),
          at: Int32Array.from(seen, (i) => images!.at[i]! - from),
        },
      }),
    };
  }
}

function likeliest(logits: ArrayLike<number>): number {
  let best = 0;
  for (let id = 1; id < logits.length; id++) if (logits[id]! > logits[best]!) best = id;
  return best;
}
