// Scopes give buffers back, and what they return lives on.

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Addon, loadAddon } from "../../../src/backends/native/addon.ts";
import { type NativeBackend, openNative } from "../../../src/backends/native/backend.ts";
import { Memory } from "../../../src/backends/native/memory.ts";
import { add, attend, linear, reshape, route } from "../../../src/tensor/ops.ts";

function built(): Addon | undefined {
  try {
    return loadAddon();
  } catch {
    return undefined; // no compiler: the build said so
  }
}

/** An addon that counts its allocations; buffers are ordinary ones. */
function counting() {
  const count = { allocated: 0, released: 0 };
  const addon = {
    allocate: (bytes: number) => {
      count.allocated++;
      return new ArrayBuffer(bytes);
    },
    release: () => {
      count.released++;
    },
  } as unknown as Addon; // Memory calls only these two
  return { memory: new Memory(addon), count };
}

describe("memory", () => {
  it("steady work allocates once", async () => {
    const { memory, count } = counting();
    const step = () =>
      memory.scope(
        async () => {
          memory.lend(10_000);
          memory.lend(300);
          await memory.scope(
            async () => memory.lend(300),
            () => [],
          );
        },
        () => [],
      );
    for (let i = 0; i < 50; i++) await step();
    expect(count.allocated).toBe(3);
    memory.close();
    expect(count.released).toBe(3);
  });

  it("what a scope returns goes to the scope around and ends there", async () => {
    const { memory, count } = counting();
    await memory.scope(
      async () => {
        const inner = await memory.scope(
          async () => [memory.lend(100), memory.lend(100)] as const,
          ([first]) => [first.lease!],
        );
        expect(inner.map(({ lease }) => lease!.ended)).toEqual([false, true]);
        expect(memory.lend(100).buffer).toBe(inner[1].buffer);
      },
      () => [],
    );
    const again = await memory.scope(
      async () => [memory.lend(100), memory.lend(100)],
      () => [],
    );
    expect(again.length).toBe(2);
    expect(count.allocated).toBe(2);
  });

  it("what is spent ends with the scope, unless it is returned", async () => {
    const { memory } = counting();
    await memory.scope(
      async () => {
        const [spent, kept] = [memory.lend(1), memory.lend(1)];
        await memory.scope(
          async () => memory.lend(1),
          (p) => [p.lease!],
          spent.lease,
        );
        await memory.scope(
          async () => kept,
          (p) => [p.lease!],
          kept.lease,
        );
        expect([spent.lease!.ended, kept.lease!.ended]).toEqual([true, false]);
      },
      () => [],
    );
  });

  it("a scope that fails gives everything back", async () => {
    const { memory, count } = counting();
    for (let i = 0; i < 3; i++)
      await expect(
        memory.scope(
          async () => {
            memory.lend(1);
            throw new Error("no");
          },
          () => [],
        ),
      ).rejects.toThrow("no");
    expect(count.allocated).toBe(1);
  });

  it("scopes that run at the same time do not mix", async () => {
    const { memory } = counting();
    const work = async () => {
      const mine = memory.lend(1);
      for (let i = 0; i < 5; i++) {
        await Promise.resolve();
        expect(mine.lease!.ended).toBe(false);
      }
      return mine;
    };
    const results = await Promise.all([work, work, work].map((w) => memory.scope(w, () => [])));
    expect(new Set(results.map((r) => r.buffer)).size).toBe(3);
  });

  it("scopes end in any order, and after the last one memory is lent outside of all", async () => {
    const { memory } = counting();
    const lasting = (turns: number) =>
      memory.scope(
        async () => {
          for (let i = 0; i < turns; i++) await Promise.resolve();
          return memory.lend(1);
        },
        () => [],
      );
    for (let again = 0; again < 2; again++) {
      const [short, long] = await Promise.all([lasting(1), lasting(9)]);
      expect([short.lease!.ended, long.lease!.ended]).toEqual([true, true]);
      const outside = memory.lend(1).lease!;
      expect([outside.scope, outside.ended]).toEqual([undefined, false]);
    }
  });
});

describe.runIf(built())("the native backend", () => {
  let backend: NativeBackend;
  beforeAll(() => {
    backend = openNative({ threads: 2 });
  });
  afterAll(() => backend.close());

  const numbers = (n: number) => Float32Array.from({ length: n }, (_, i) => i);

  it("keeps the tensors in a returned tensor, array, record or routes", async () => {
    const made = await backend.scope(async () => {
      const x = backend.from(numbers(6), [2, 3]);
      return { one: x, list: [add(x, x), reshape(add(x, x), [6])], routes: route(x, 2) };
    });
    await backend.scope(async () => backend.from(new Float32Array(6).fill(-1), [6])); // would reuse a freed buffer
    expect([...(await backend.read(made.one))]).toEqual([0, 1, 2, 3, 4, 5]);
    expect([...(await backend.read(made.list[1]!))]).toEqual([0, 2, 4, 6, 8, 10]);
    expect((await backend.read(made.routes.scores))[0]).toBeCloseTo(1 / (1 + Math.exp(-2)), 6);
  });

  it("says so when a tensor outlived its scope", async () => {
    const leaked = await backend.scope(async () => ({ hide: () => made }) as const);
    const made = backend.from(numbers(2), [2]);
    expect(leaked.hide()).toBe(made);
    let escaped = made;
    await backend.scope(async () => {
      escaped = backend.from(numbers(2), [2]);
    });
    expect(() => add(escaped, escaped)).toThrow(/used after its scope ended/);
  });

  it("refuses instruction sets that the processor lacks or nobody knows", () => {
    expect(() => openNative({ isa: "sse9" })).toThrow(/"sse9"; this processor has .*baseline/);
  });

  it("throws a RangeError with our stack when sizes do not fit", () => {
    const [x, w] = [backend.from(numbers(6), [2, 3]), backend.from(numbers(6), [2, 3])];
    const short = { ...w, shape: [2000, 3000] };
    const wide = { ...x, shape: [2, 3000] };
    const call = () => linear(wide, short);
    expect(call).toThrow(RangeError);
    expect(call).toThrow(/needs 24000 bytes/);
    try {
      call();
    } catch (error) {
      expect((error as Error).stack).toMatch(/memory\.test\.ts/);
    }
  });

  it("a block table that is too short, or names a block that is not there, is an error", () => {
    const pool = backend.kvPool({ layers: 1, blocks: 2, blockSize: 4, heads: 1, headDim: 2, dtype: "f32" });
    const q = backend.from(numbers(2), [1, 1, 2]);
    const run = (position: number, table: Int32Array) =>
      attend(q, q, q, {
        segments: [{ row: 0, length: 1, position, sequence: 0 }],
        cache: { pool, layer: 0, table: () => table },
      });
    expect(() => run(0, Int32Array.of(0))).not.toThrow();
    expect(() => run(4, Int32Array.of(0))).toThrow(/ends before slot 4/);
    expect(() => run(0, Int32Array.of(2))).toThrow(/index 2/);
    pool.close();
  });

  it("copies blocks of every layer", async () => {
    const pool = backend.kvPool({ layers: 2, blocks: 3, blockSize: 2, heads: 1, headDim: 2, dtype: "f16" });
    expect(pool.blockBytes).toBe(2 * 2 * 2 * 2 * 2);
    const at = (layer: number, block: number) => ({ pool, layer, table: () => Int32Array.of(block) });
    const [q, v] = [backend.from(new Float32Array(2), [1, 1, 2]), backend.from(numbers(2), [1, 1, 2])];
    const first = [{ row: 0, length: 1, position: 0, sequence: 0 }];
    for (const layer of [0, 1]) attend(q, v, v, { segments: first, cache: at(layer, 0) });
    pool.copy(0, 2);
    const second = [{ row: 0, length: 1, position: 1, sequence: 0 }];
    // Slot 0 of block 2 holds the copied value, slot 1 zeros: equal scores average them.
    const y = attend(q, q, q, { segments: second, cache: at(1, 2) });
    expect([...(await backend.read(y))]).toEqual([0, 0.5]);
    expect(() => pool.copy(0, 3)).toThrow(/no block 3 of 3/);
    pool.close();
  });

  it("after close, work is refused", () => {
    const other = openNative({ threads: 2 });
    const x = other.from(numbers(2), [2]);
    other.close();
    expect(() => add(x, x)).toThrow(/closed/);
  });
});
