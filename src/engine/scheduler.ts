// Who computes what in the next step: continuous batching as pure functions over what is running.

import type { Segment } from "../tensor/backend.ts";
import type { ImageSpan, KVCache } from "./kv-cache.ts";

/** A sequence as the scheduler sees it. */
export interface Running {
  readonly sequence: number;
  /** Its tokens so far: the prompt and what was sampled. */
  readonly length: number;
  /** How many of them have been computed; all, where it only stays for those that begin as it does. */
  readonly position: number;
  /** Positions from here on wait for an image that is still being encoded. */
  readonly readable?: number | undefined;
  /** Most of its tokens in a step, where that is fewer than the step has. */
  readonly mostRows?: number | undefined;
  /** Tokens guessed to follow, for a sequence that needs one token. */
  readonly guesses?: ArrayLike<number> | undefined;
}

export interface Budget {
  /** Most tokens in a step. */
  readonly tokens: number;
  /** Positions of an attention chunk, Infinity without: no segment crosses a multiple of it. */
  readonly chunk: number;
}

/**
 * The segments of the next step. Sequences that need one token come first, in the given order; a quarter of the budget
 * stays for prompts where there are any. Prompts share what is left evenly; what a short one does not need goes to the longer.
 * Guesses ride along where there is no prompt: each row then costs least.
 */
export function plan(running: readonly Running[], { tokens, chunk }: Budget): Segment[] {
  const pending = (r: Running) => r.length - r.position;
  const readable = (r: Running) => Math.min(r.length, r.readable ?? Infinity) - r.position;
  const ready = running.filter((r) => readable(r) > 0);
  const decodes = ready.filter((r) => pending(r) === 1);
  const prefills = ready.filter((r) => pending(r) > 1);
  const inChunk = (r: Running) => chunk - (r.position % chunk);
  const slice = (r: Running) => Math.min(readable(r), inChunk(r), r.mostRows ?? Infinity);

  const kept = prefills.length > 0 ? Math.floor(tokens / 4) : 0;
  const taken = decodes.slice(0, tokens - kept).map((r) => ({ r, length: 1 }));
  let left = tokens - taken.length;
  const shortFirst = prefills.slice(0, left).sort((a, b) => slice(a) - slice(b));
  for (const [i, r] of shortFirst.entries()) {
    const share = Math.ceil(left / (shortFirst.length - i));
    const length = Math.min(slice(r), share);
    taken.push({ r, length });
    left -= length;
  }
  for (const decode of prefills.length > 0 ? [] : taken) {
    const guessed = Math.min(decode.r.guesses?.length ?? 0, inChunk(decode.r) - 1, left);
    decode.length += guessed;
    left -= guessed;
  }

  let row = 0;
  return taken.map(({ r, length }) => {
    const segment = { row, length, position: r.position, sequence: r.sequence };
    row += length;
    return segment;
  });
}

/** A sequence that can be put back into the queue: its tokens stay, what was computed is given up. */
export interface Schedulable extends Running {
  readonly tokens: ArrayLike<number>;
  position: number;
  guesses?: ArrayLike<number> | undefined;
  /** The sequence that it goes on from: nothing else of it is computed, and it waits until that is. */
  readonly from?: number | undefined;
  /** Every position has to be computed: nothing of it may come from the cache. */
  readonly wantsAll?: boolean;
  readonly images?: { readonly placed: readonly ImageSpan[] } | undefined;
  /** `cache.releases` when there was no room for it: until that changes there is none. */
  refusedAt?: number | undefined;
}

export interface Queues<R extends Schedulable> {
  /** Not in the cache, the next first. */
  readonly waiting: R[];
  /** In the cache, the longest unserved first. */
  readonly running: R[];
}

/**
 * Plans a step with room in the cache for all of it. Admits from `waiting` while everything known of everyone fits;
 * when sampled tokens outgrow the cache, guesses are left out first; then the sequence that was admitted last goes back to
 * the head of `waiting`. Served sequences move to the end of `running`.
 */
export function schedule<R extends Schedulable>(
  queues: Queues<R>,
  cache: KVCache,
  budget: Budget & { sequences: number },
): Segment[] {
  const { waiting, running } = queues;
  const computed = () => running.filter((r) => !isDone(r)).length;
  while (waiting.length > 0 && computed() < budget.sequences) {
    // What goes on from a held prompt comes first: it alone can end the hold, for which the others may be waiting.
    const next = waiting.find((r) => isHeld(r.from, running)) ?? waiting[0]!;
    if (!admit(next, running, cache)) break;
    waiting.splice(waiting.indexOf(next), 1);
    running.push(next);
  }

  for (;;) {
    const segments = plan(running, budget);
    if (cache.fits(segments.map((s) => [s.sequence, s.position + s.length]))) {
      for (const s of segments) cache.reserve(s.sequence, s.position + s.length);
      if (segments.length === running.length) return segments; // all are served
      const served = new Set(segments.map((s) => s.sequence));
      running.sort((a, b) => Number(served.has(a.sequence)) - Number(served.has(b.sequence)));
      return segments;
    }
    if (running.some((r) => r.guesses)) {
      for (const r of running) r.guesses = undefined; // for a guess nobody gives up what was computed
      continue;
    }
    const last = running.reduce((a, b) => (b.sequence > a.sequence ? b : a));
    if (running.length === 1)
      throw new RangeError(`sequence ${last.sequence} of ${last.length} tokens does not fit into the empty cache`);
    running.splice(running.indexOf(last), 1);
    cache.close(last.sequence);
    last.position = 0;
    waiting.unshift(last);
  }
}

const isHeld = (sequence: number | undefined, running: readonly Running[]) =>
  sequence !== undefined && running.some((r) => r.sequence === sequence && isDone(r));

const isDone = ({ position, length }: Running) => position === length;

/** Opens the sequence if it and all that run fit to their known lengths, with a block more for each that runs. */
function admit(r: Schedulable, running: readonly Running[], cache: KVCache): boolean {
  if (r.refusedAt === cache.releases) return false; // a million tokens are not looked up again in every step
  if (r.from === undefined) r.position = cache.open(r.sequence, r.wantsAll ? [] : r.tokens, r.images?.placed);
  else if (isHeld(r.from, running)) r.position = cache.fork(r.sequence, r.from);
  else return false;
  const grown = running.map((x) => [x.sequence, x.length + (isDone(x) ? 0 : cache.sizes.blockSize)] as const);
  if (cache.fits([...grown, [r.sequence, r.length]])) return true;
  cache.close(r.sequence);
  r.position = 0;
  r.refusedAt = cache.releases;
  return false;
}
