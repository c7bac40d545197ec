import fc from "fast-check";
import { describe, expect, it, vi } from "vitest";
import { KVCache } from "../../src/engine/kv-cache.ts";
import { plan, type Running, schedule } from "../../src/engine/scheduler.ts";

const running = fc
  .array(fc.record({ position: fc.nat(200), pending: fc.oneof(fc.constant(1), fc.integer({ min: 1, max: 300 })) }), {
    maxLength: 30,
  })
  .map((rs) => rs.map(({ position, pending }, sequence) => ({ sequence, position, length: position + pending })));
const budget = fc.record({
  tokens: fc.integer({ min: 1, max: 128 }),
  chunk: fc.constantFrom(1, 4, 16, 24, 64, Infinity),
});

describe("a planned step", () => {
  it("reads a prompt up to the image that is still being encoded, and leaves out who waits for one", () => {
    const prompt = { sequence: 0, position: 0, length: 50, readable: 10 };
    const waiting = { sequence: 1, position: 20, length: 50, readable: 20 };
    const last = { sequence: 2, position: 30, length: 31, readable: 25 };
    const segments = plan([prompt, waiting, last], { tokens: 64, chunk: 32 });
    expect(segments).toEqual([{ row: 0, position: 0, length: 10, sequence: 0 }]);
  });

  it("takes no more of a prompt than its rows, and gives the rest to others", () => {
    const narrow = { sequence: 0, position: 5, length: 50, mostRows: 3 };
    const other = { sequence: 1, position: 0, length: 50 };
    expect(plan([narrow, other], { tokens: 16, chunk: 32 }).map(({ length }) => length)).toEqual([3, 13]);
  });

  it("keeps the budget, fills it where it can, cuts at chunks and numbers its rows, for 1,000 random queues", () => {
    fc.assert(
      fc.property(running, budget, (queue, { tokens, chunk }) => {
        const segments = plan(queue, { tokens, chunk });
        let row = 0;
        for (const s of segments) {
          const of = queue[s.sequence]!;
          expect(s.row).toBe(row);
          row += s.length;
          expect(s.length).toBeGreaterThan(0);
          expect(s.position).toBe(of.position);
          expect(s.position + s.length).toBeLessThanOrEqual(of.length);
          if (chunk !== Infinity) expect((s.position % chunk) + s.length).toBeLessThanOrEqual(chunk);
        }
        expect(new Set(segments.map((s) => s.sequence)).size).toBe(segments.length);
        expect(row).toBeLessThanOrEqual(tokens);
        const slices = queue.map((r) => Math.min(r.length - r.position, chunk - (r.position % chunk)));
        const prefillWork = queue.some((r) => r.length - r.position > 1);
        const most = slices.reduce((a, b) => a + b, 0);
        // with prompts in the queue a quarter may stay empty, if they have not enough to fill it
        expect(row).toBeGreaterThanOrEqual(Math.min(most, prefillWork ? tokens - Math.floor(tokens / 4) : tokens));
      }),
      { numRuns: 1000 },
    );
  });

  it("takes sequences that decode before prompts", () => {
    const queue: Running[] = [
      { sequence: 0, position: 0, length: 100 },
      { sequence: 1, position: 9, length: 10 },
    ];
    expect(plan(queue, { tokens: 32, chunk: 64 })).toEqual([
      { row: 0, length: 1, position: 9, sequence: 1 },
      { row: 1, length: 31, position: 0, sequence: 0 },
    ]);
  });

  it("lets guesses ride along, up to the chunk's end and within the budget, but not beside a prompt", () => {
    const guesses = new Array<number>(9).fill(1);
    const decode = (sequence: number, position: number) => ({ sequence, position, length: position + 1, guesses });
    const lengths = (queue: Running[]) => plan(queue, { tokens: 16, chunk: 8 }).map((s) => s.length);
    expect(lengths([decode(0, 3), decode(1, 15), decode(2, 8)])).toEqual([5, 1, 8]);
    expect(lengths([0, 8, 16, 24].map((position, i) => decode(i, position)))).toEqual([8, 6, 1, 1]);
    expect(lengths([decode(0, 3), { sequence: 1, position: 0, length: 4 }])).toEqual([1, 4]);
  });

  it("does not let a long prompt hold up a short one", () => {
    const queue: Running[] = [
      { sequence: 0, position: 0, length: 1_000_000 },
      { sequence: 1, position: 0, length: 20 },
    ];
    expect(plan(queue, { tokens: 512, chunk: 8192 }).map((s) => [s.sequence, s.length])).toEqual([
      [1, 20],
      [0, 492],
    ]);
  });
});

// A cache of real slots beside the bookkeeping: a slot remembers which beginning of which tokens it was written for.
class Slots {
  readonly written = new Map<string, string>();
  readonly cache: KVCache;

  constructor(cache: KVCache) {
    this.cache = cache;
  }

  #slot(kind: "global" | "local", sequence: number, p: number): string {
    const { blockSize, chunk } = this.cache.sizes;
    const slot = kind === "global" || chunk === Infinity ? p : p % chunk;
    const block = this.cache.table(kind, sequence)[Math.floor(slot / blockSize)];
    expect(block).toBeDefined();
    return `${kind} ${block} ${slot % blockSize}`;
  }

  step(
    tokens: readonly number[],
    { sequence, position, length }: { sequence: number; position: number; length: number },
  ) {
    const { chunk, globalBlocks, localBlocks } = this.cache.sizes;
    for (const [kind, blocks] of [
      ["global", globalBlocks],
      ["local", localBlocks],
    ] as const) {
      if (blocks === undefined) continue;
      for (let p = position; p < position + length; p++)
        this.written.set(this.#slot(kind, sequence, p), tokens.slice(0, p + 1).join());
      const start = kind === "global" || chunk === Infinity ? 0 : position - (position % chunk);
      for (let p = start; p < position + length; p++)
        expect(this.written.get(this.#slot(kind, sequence, p))).toBe(tokens.slice(0, p + 1).join());
    }
  }
}

const world = fc.record({
  blockSize: fc.constantFrom(1, 2, 4),
  blocksInChunk: fc.constantFrom(1, 2, 3, Infinity),
  layers: fc.constantFrom("global", "local", "both"),
  globalBlocks: fc.integer({ min: 12, max: 40 }),
  localBlocks: fc.integer({ min: 3, max: 12 }),
  tokens: fc.integer({ min: 4, max: 12 }),
  sequences: fc.integer({ min: 1, max: 6 }),
  sharePrefixes: fc.boolean(),
  // few letters, so that beginnings repeat
  requests: fc.array(
    fc.record({
      prompt: fc.array(fc.integer({ min: 0, max: 1 }), { minLength: 1, maxLength: 9 }),
      samples: fc.integer({ min: 0, max: 12 }),
      guesses: fc.array(fc.integer({ min: 0, max: 1 }), { maxLength: 5 }),
      cancelAfter: fc.option(fc.nat(6), { nil: undefined, freq: 4 }),
    }),
    { minLength: 1, maxLength: 12 },
  ),
});

describe("scheduling with a cache", () => {
  it("serves everyone, overwrites no live slot and leaks no block, whatever is shared, guessed, preempted or cancelled", () => {
    let preempted = 0;
    let shared = 0;
    let wrong = 0;
    fc.assert(
      fc.property(world, (w) => {
        const chunk = w.blocksInChunk * w.blockSize;
        const longest = Math.max(...w.requests.map((r) => r.prompt.length + r.samples));
        const globalBlocks = Math.max(w.globalBlocks, Math.ceil(longest / w.blockSize));
        const localBlocks = Math.max(w.localBlocks, Math.ceil(Math.min(longest, chunk) / w.blockSize));
        const cache = new KVCache(
          {
            blockSize: w.blockSize,
            chunk: w.layers === "global" ? Infinity : chunk,
            globalBlocks: w.layers === "local" ? undefined : globalBlocks,
            localBlocks: w.layers === "global" ? undefined : localBlocks,
          },
          { sharePrefixes: w.sharePrefixes },
        );
        const slots = new Slots(cache);
        const waiting = w.requests.map(({ prompt, samples, cancelAfter, guesses }, sequence) => ({
          sequence,
          tokens: [...prompt],
          get length() {
            return this.tokens.length;
          },
          position: 0,
          samples,
          cancelAfter,
          always: guesses,
          guesses: undefined as number[] | undefined,
        }));
        const runningNow: typeof waiting = [];
        for (let steps = 0; waiting.length + runningNow.length > 0; steps++) {
          expect(steps).toBeLessThan(3000);
          const before = new Set(runningNow);
          for (const r of runningNow) r.guesses = r.always.slice(0, r.samples);
          const segments = schedule({ waiting, running: runningNow }, cache, {
            tokens: w.tokens,
            chunk: cache.sizes.chunk,
            sequences: w.sequences,
          });
          expect(segments.length).toBeGreaterThan(0);
          for (const r of before) if (!runningNow.includes(r)) preempted++;
          for (const r of runningNow) if (!before.has(r) && r.position > 0) shared++;
          for (const s of segments) {
            const r = runningNow.find((x) => x.sequence === s.sequence)!;
            slots.step([...r.tokens, ...(r.guesses ?? [])], s);
          }
          for (const s of segments) {
            const r = runningNow.find((x) => x.sequence === s.sequence)!;
            const next = () => (r.sequence + r.length) % 2;
            const cancelled = r.cancelAfter !== undefined && r.cancelAfter < steps;
            const guesses = r.guesses?.slice(0, Math.max(0, s.position + s.length - r.length)) ?? [];
            r.position = s.position + s.length - guesses.length;
            for (const guess of guesses) {
              if (guess !== next()) {
                wrong++;
                break;
              }
              r.tokens.push(guess);
              r.samples--;
              r.position++;
            }
            cache.commit(r.sequence, r.tokens, r.position);
            if (r.position < r.length && !cancelled) continue;
            if (r.samples-- > 0 && !cancelled) r.tokens.push(next());
            else {
              cache.close(r.sequence);
              runningNow.splice(runningNow.indexOf(r), 1);
            }
          }
        }
        if (w.layers !== "local") expect(cache.available("global")).toBe(globalBlocks);
        if (w.layers !== "global") expect(cache.available("local")).toBe(localBlocks);
      }),
      { numRuns: 1000 },
    );
    expect(preempted).toBeGreaterThan(50); // the property has met what it is about
    expect(shared).toBeGreaterThan(50);
    expect(wrong).toBeGreaterThan(50);
  });

  it("looks a waiting prompt up once, until blocks are given up", () => {
    const cache = new KVCache({ blockSize: 4, chunk: Infinity, globalBlocks: 8, localBlocks: undefined });
    const job = (sequence: number, length: number) => ({
      ...{ sequence, position: 0, length, tokens: Array.from({ length }, (_, i) => i + sequence) },
    });
    const waiting = [job(0, 20), job(1, 16)];
    const running: typeof waiting = [];
    const step = () => schedule({ waiting, running }, cache, { tokens: 4, chunk: Infinity, sequences: 2 });
    const open = vi.spyOn(cache, "open");
    for (let i = 0; i < 4; i++) {
      expect(step().map((s) => s.sequence)).toEqual([0]);
      running[0]!.position += 4;
    }
    expect(open.mock.calls.map(([sequence]) => sequence)).toEqual([0, 1]);
    cache.close(0);
    running.pop();
    expect(step().map((s) => s.sequence)).toEqual([1]);
  });
});
