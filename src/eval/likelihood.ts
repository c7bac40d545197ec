// What a model's logits say of tokens that are known.
//
// V vocabulary

/** Log-probability of a token by one position's logits `[V]`, in nats, at most 0. */
export function logProbability(logits: ArrayLike<number>, token: number): number {
  let most = -Infinity;
  for (let i = 0; i < logits.length; i++) most = Math.max(most, logits[i]!);
  let sum = 0;
  for (let i = 0; i < logits.length; i++) sum += Math.exp(logits[i]! - most);
  return logits[token]! - most - Math.log(sum);
}

/** A text's likelihood: what it cost to say it. */
export class Likelihood {
  #nats = 0;
  #tokens = 0;
  #bytes = 0;

  /** Tokens that cost so many nats together and stand for so many bytes of UTF-8. */
  add(nats: number, tokens: number, bytes: number): void {
    this.#nats += nats;
    this.#tokens += tokens;
    this.#bytes += bytes;
  }

  get summary() {
    const [nats, tokens, bytes] = [this.#nats, this.#tokens, this.#bytes];
    return {
      tokens,
      bytes,
      loss: nats / tokens,
      perplexity: Math.exp(nats / tokens),
      bitsPerByte: nats / Math.LN2 / bytes,
    };
  }
}

/** The windows `[from, to)` in which n tokens are computed: each begins with the last token of the one before. */
export function* windows(n: number, length: number): Generator<{ readonly from: number; readonly to: number }> {
  for (let from = 0; from + 1 < n; from += length - 1) yield { from, to: Math.min(n, from + length) };
}
