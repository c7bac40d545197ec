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

export interface Ranked<T> {
  readonly candidate: T;
  readonly logProbability: number;
}

/**
 * The k likeliest of some candidates. `bound` is what a candidate's likelihood cannot exceed (its first token's), `score`
 * the likelihood itself; who cannot be among the k any more is not scored.
 */
export async function likeliest<T>(
  candidates: readonly T[],
  k: number,
  bound: (candidate: T) => number,
  score: (candidate: T) => Promise<number>,
): Promise<Ranked<T>[]> {
  const inOrder = candidates
    .map((candidate) => ({ candidate, most: bound(candidate) }))
    .sort((a, b) => b.most - a.most);
  let best: Ranked<T>[] = [];
  for (const { candidate, most } of inOrder) {
    if (best.length === k && most <= best[k - 1]!.logProbability) break;
    best = [...best, { candidate, logProbability: await score(candidate) }]
      .sort((a, b) => b.logProbability - a.logProbability)
      .slice(0, k);
  }
  return best;
}

/** The windows `[from, to)` in which n tokens are computed: each begins with the last token of the one before. */
export function* windows(n: number, length: number): Generator<{ readonly from: number; readonly to: number }> {
  for (let from = 0; from + 1 < n; from += length - 1) yield { from, to: Math.min(n, from + length) };
}
