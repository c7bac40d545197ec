// What the model thought of a prompt: for each of its tokens the log-probability behind those before it.

import type { Tokenizer } from "../prompt/tokenizer.ts";
import { RequestError } from "../tensor/errors.ts";
import { shownToken, type TokenLogprob } from "./completion.ts";
import type { Engine } from "./engine.ts";
import { type Logprob, logprobsOf } from "./sampler.ts";

/** A token of a prompt. The first has no log-probability: nothing comes before it. */
export interface PromptToken extends Omit<TokenLogprob, "logprob"> {
  readonly logprob: number | null;
  /** The likeliest in its place. */
  readonly top: readonly TokenLogprob[];
}

interface PromptLogprobsOptions {
  readonly vocabSize: number;
  /** How many of the likeliest are told in each place, 0 to 20. */
  readonly top: number;
  readonly signal?: AbortSignal | undefined;
}

/** All tokens of a prompt without images. */
export async function promptLogprobs(
  engine: Pick<Engine, "logits">,
  tokenizer: Tokenizer | undefined,
  tokens: ArrayLike<number>,
  { vocabSize, top, signal }: PromptLogprobsOptions,
): Promise<PromptToken[]> {
  if (!(Number.isInteger(top) && top >= 0 && top <= 20))
    throw new RequestError(`top is ${top}; expected a whole number from 0 to 20`);
  const shown = (logprob: Logprob) => shownToken(logprob, tokenizer);
  const told: PromptToken[] = [];
  for await (const { position, logits } of engine.logits(tokens, { signal })) {
    if (position === 0) told.push({ ...shown({ token: tokens[0]!, logprob: 0 }), logprob: null, top: [] });
    for (let row = 0; row * vocabSize < logits.length; row++) {
      const token = tokens[position + row + 1];
      if (token === undefined) break;
      const of = logprobsOf(logits.subarray(row * vocabSize, (row + 1) * vocabSize), top)(token);
      told.push({ ...shown(of), top: of.top.map(shown) });
    }
  }
  return told;
}
