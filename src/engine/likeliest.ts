// Which of many continuations of a prompt are likeliest.
//
// V vocabulary

import { RequestError } from "../tensor/errors.ts";
import type { Engine } from "./engine.ts";
import type { PromptImage } from "./images.ts";
import { logprobsOf } from "./sampler.ts";

export interface Ranked {
  /** Its index. */
  readonly candidate: number;
  /** Of all its tokens together, in nats, at most 0. */
  readonly logprob: number;
}

interface LikeliestOptions {
  readonly vocabSize: number;
  readonly k: number;
  readonly images?: readonly PromptImage[] | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Candidates whose first `depth` tokens are the same, and more follow. */
interface Branch {
  readonly candidates: readonly number[];
  readonly depth: number;
  /** Of those tokens together: no candidate is likelier. */
  readonly logprob: number;
}

const together = 32; // branches followed at once

/**
 * The k likeliest continuations, each as a whole, the likeliest first. The prompt is computed once, and what continuations
 * begin alike with is looked at once; who is behind the k likeliest before his end is not followed any further.
 */
export async function likeliest(
  engine: Pick<Engine, "hold" | "logits">,
  prompt: ArrayLike<number>,
  continuations: readonly ArrayLike<number>[],
  { vocabSize: V, k, images, signal }: LikeliestOptions,
): Promise<Ranked[]> {
  checkContinuations(continuations, V);
  if (!(Number.isInteger(k) && k >= 1)) throw new RequestError(`k is ${k}; expected how many are wanted, from 1`);
  const held = await engine.hold(prompt, { images, signal });

  /** The branches, or whole candidates, of which the logits behind a branch tell the next token's probability. */
  const split = ({ candidates, depth, logprob }: Branch, logits: Float32Array | Float64Array): (Branch | Ranked)[] => {
    const of = logprobsOf(logits, 0);
    const next = new Map<number, number[]>();
    for (const candidate of candidates) {
      const token = continuations[candidate]![depth]!;
      const alike = next.get(token);
      if (alike) alike.push(candidate);
      else next.set(token, [candidate]);
    }
    return [...next].flatMap(([token, candidates]) => {
      const branch = { depth: depth + 1, logprob: logprob + of(token).logprob };
      const isWhole = (candidate: number) => continuations[candidate]!.length === branch.depth;
      const longer = candidates.filter((candidate) => !isWhole(candidate));
      const whole = candidates.filter(isWhole).map((candidate) => ({ candidate, logprob: branch.logprob }));
      return longer.length > 0 ? [...whole, { ...branch, candidates: longer }] : whole;
    });
  };

  /** One step on; to the end where a branch is a single candidate. */
  const followed = async (branch: Branch): Promise<(Branch | Ranked)[]> => {
    const [candidate] = branch.candidates as [number, ...number[]];
    const tokens = Array.from(continuations[candidate]!);
    if (branch.candidates.length > 1) {
      for await (const { logits } of engine.logits(tokens.slice(0, branch.depth), { last: true, from: held }))
        return split(branch, logits);
      throw new Error("no logits of a branch");
    }
    let { logprob } = branch;
    for await (const { position, logits } of engine.logits(tokens.slice(0, -1), { from: held }))
      for (let row = 0; row * V < logits.length; row++) {
        const next = position - held.tokens.length + row + 1;
        if (next < branch.depth) continue;
        logprob += logprobsOf(logits.subarray(row * V, (row + 1) * V), 0)(tokens[next]!).logprob;
      }
    return [{ candidate, logprob }];
  };

  try {
    const root = { candidates: [...continuations.keys()], depth: 0, logprob: 0 };
    return await best(split(root, held.logits), k, followed);
  } catch (error) {
    signal?.throwIfAborted(); // what goes on from the prompt ends with it
    throw error;
  } finally {
    held.close();
  }
}

/** The k best of what branches lead to. */
export async function best(
  found: readonly (Branch | Ranked)[],
  k: number,
  follow: (branch: Branch) => Promise<(Branch | Ranked)[]>,
): Promise<Ranked[]> {
  let ranked: Ranked[] = [];
  let open: Branch[] = [];
  for (let news = found; ; ) {
    const whole = news.filter((one) => "candidate" in one);
    ranked = [...ranked, ...whole].sort(byLogprob).slice(0, k);
    const least = ranked.length < k ? undefined : ranked.at(-1)?.logprob;
    open = [...open, ...news.filter((one) => "candidates" in one)].sort(byLogprob);
    if (least !== undefined) open = open.filter(({ logprob }) => logprob > least);
    if (open.length === 0) return ranked;
    news = (await Promise.all(open.splice(0, together).map(follow))).flat();
  }
}

const byLogprob = (a: { readonly logprob: number }, b: { readonly logprob: number }) => b.logprob - a.logprob;

function checkContinuations(continuations: readonly ArrayLike<number>[], vocabSize: number): void {
  const isKnown = (id: number) => Number.isInteger(id) && id >= 0 && id < vocabSize;
  const wrong = continuations.findIndex((tokens) => tokens.length === 0 || !Array.from(tokens).every(isKnown));
  if (wrong >= 0)
    throw new RequestError(
      `continuation ${wrong} is [${Array.from(continuations[wrong]!).join(", ")}]; expected one or more tokens from 0 to ${vocabSize - 1}`,
    );
}
