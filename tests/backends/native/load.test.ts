// Files into memory by native threads: plain views, transposed views of shared bytes, failures, cancellation.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { loadAddon } from "../../../src/backends/native/addon.ts";
import { type NativeBackend, openNative } from "../../../src/backends/native/backend.ts";
import { readViews, spotsOf } from "../../../src/backends/native/load.ts";
import { Memory } from "../../../src/backends/native/memory.ts";
import { openReference } from "../../../src/backends/reference/reference.ts";
import { sideBySide } from "../../../src/checkpoint/source.ts";
import type { DType } from "../../../src/tensor/dtype.ts";
import { CheckpointError } from "../../../src/tensor/errors.ts";
import { elementCount, type Piece, type Shape, type Tensor, type TensorView } from "../../../src/tensor/tensor.ts";

function isBuilt(): boolean {
  try {
    loadAddon();
    return true;
  } catch {
    return false; // no compiler: the build said so
  }
}

it("spots for views are whole pages side by side; one that does not fit begins a region", () => {
  expect(spotsOf([1, 4096, 4097, 0, 9000, 1, 20_000], 16_384)).toEqual({
    of: [
      ...[0, 4096, 8192].map((at) => ({ region: 0, at })),
      ...[{ region: 0, at: 16_384 }, ...[0, 12_288].map((at) => ({ region: 1, at }))],
      { region: 2, at: 0 },
    ],
    regionBytes: [16_384, 16_384, 20_480],
  });
  expect(spotsOf([], 4096)).toEqual({ of: [], regionBytes: [] });
});

describe.runIf(isBuilt())("loading with the native backend", () => {
  const folder = mkdtempSync(join(tmpdir(), "llama4-load-"));
  let backend: NativeBackend;
  beforeAll(() => {
    backend = openNative({ threads: 2, activations: "f32" });
  });
  afterAll(() => {
    backend.close();
    rmSync(folder, { recursive: true });
  });

  /** A file whose 16-bit words count up, and a way to view it. */
  function fileOf(name: string, bytes: number) {
    const path = join(folder, name);
    const words = Uint16Array.from({ length: bytes / 2 }, (_, i) => (i * 40503) & 0x3fff);
    writeFileSync(path, words);
    const content = readFileSync(path);
    const source = {
      ...{ name, path, byteLength: bytes },
      read: async (offset: number, length: number) => new Uint8Array(content.subarray(offset, offset + length)),
    };
    return (dtype: DType, shape: Shape, offset: number, strides?: readonly number[]): TensorView => ({
      ...{ name: `${name}@${offset}`, dtype, shape, source, offset, ...(strides && { strides }) },
    });
  }

  it("fills several regions, whatever way a view is read", async () => {
    const addon = loadAddon();
    const memory = new Memory(addon);
    const view = fileOf("regions", 48_000);
    const { path: _, ...unread } = view("f16", [1], 0).source; // by threads
    const elsewhere = { ...view("f16", [3000], 18_000), source: unread };
    const views = [view("f16", [5000], 0), view("f16", [60, 50], 12_000), elsewhere, view("f32", [6000], 24_000)];
    const places = await readViews(addon, memory, views, () => false, {}, 16_384);
    expect(new Set(places.map(({ buffer }) => buffer)).size).toBe(3);
    const content = readFileSync(join(folder, "regions"));
    for (const [i, { buffer, at }] of places.entries()) {
      const bytes = [10_000, 6000, 6000, 24_000][i]!;
      const { offset } = views[i]!;
      expect(Buffer.from(buffer, at, bytes).equals(content.subarray(offset, offset + bytes))).toBe(true);
    }
    expect(memory.bytes).toBe(12_288 + 16_384 + 24_576);
    memory.close();
    expect(memory.bytes).toBe(0);
  });

  /** Rows of the loaded tensor as the reference loads them, to the bit. */
  async function sameAsReference(views: readonly TensorView[]): Promise<void> {
    const reference = openReference();
    const [ours, theirs] = await Promise.all([backend.load(views), reference.load(views)]);
    for (const [i, tensor] of ours.entries()) {
      const got = await backend.read(tensor);
      expect(got.length).toBe(elementCount(views[i]!.shape));
      expect(Buffer.from(got.buffer).equals(Buffer.from((await reference.read(theirs[i]!)).buffer))).toBe(true);
    }
  }

  it("plain views at odd places, several blocks long", async () => {
    const view = fileOf("plain.bin", 20 * 2 ** 20);
    await sameAsReference([
      view("f16", [3], 2),
      view("f16", [900, 10000], 6),
      view("bf16", [7, 1000], 19 * 2 ** 20),
      view("q8_0", [5, 64], 100),
      view("f32", [11], 4),
    ]);
  });

  it("packed matrices from a file = packed from memory, several blocks long, groups not full", async () => {
    const rounded = openNative({ threads: 2, activations: "int8" });
    const view = fileOf("packed.bin", 12 * 2 ** 20);
    const views = (["q8_0", "q4_0", "q4_k", "q5_k", "q6_k"] as const).flatMap((dtype, i) => [
      view(dtype, [2 + i, 37, 1024], 6 + 32 * i),
      view(dtype, [9001, 512], 6 + 32 * i),
    ]);
    const inMemory = views.map(({ source: { path: _, ...source }, ...rest }) => ({ ...rest, source }));
    const [a, b] = await Promise.all([rounded.load(views), rounded.load(inMemory)]);
    for (const [i, tensor] of a.entries())
      expect(
        Buffer.from((await rounded.read(tensor)).buffer).equals(Buffer.from((await rounded.read(b[i]!)).buffer)),
        `${i}`,
      ).toBe(true);
    rounded.close();
  });

  it("gate and up out of fused [E, D, 2F], down out of [E, F, D]", async () => {
    const [E, D, F] = [3, 70, 37];
    const view = fileOf("fused.bin", 2 * E * D * 3 * F + 10);
    const gate = view("bf16", [E, F, D], 10, [D * 2 * F, 1, 2 * F]);
    const up = view("bf16", [E, F, D], 10 + 2 * F, [D * 2 * F, 1, 2 * F]);
    const down = view("bf16", [E, D, F], 10 + 2 * E * D * 2 * F, [F * D, 1, D]);
    await sameAsReference([gate, up, down]);
    await sameAsReference([down]);
    await sameAsReference([up]);
  });

  it("one expert, one row, one column, and halves that are not transposed", async () => {
    const view = fileOf("small.bin", 4096);
    await sameAsReference([view("f32", [1, 5, 9], 8, [90, 1, 10]), view("f16", [5, 9], 0, [1, 10])]);
    await sameAsReference([view("f16", [3, 1, 9], 0, [90, 1, 10]), view("f16", [3, 9, 1], 0, [90, 1, 10])]);
    await sameAsReference([view("f16", [3, 4, 9], 0, [72, 9, 1]), view("f16", [3, 4, 9], 72, [72, 9, 1])]);
    await sameAsReference([view("f32", [2, 3, 4, 2], 0, [1, 8, 2, 24])]);
  });

  it("blocks of a transposed view meet without a seam", async () => {
    const [D, F, row] = [1030, 16, 8192]; // rows of 16 KiB: a block of 16 MiB holds 1,024 of them
    const view = fileOf("seam.bin", 2 * D * row);
    await sameAsReference([0, 2 * F].map((offset) => view("bf16", [1, F, D], offset, [0, 1, row])));
  });

  describe("composed sources", () => {
    /** A view of all of a composition, as Meta's shards and unfused experts are joined, and how often JavaScript read it. */
    function composed(
      shards: readonly TensorView[],
      rows: number,
      run: number,
      shape: Shape,
      strides?: readonly number[],
    ) {
      const pieces = shards.map(({ source, offset }): Piece => ({ source, offset, run }));
      const whole = sideBySide("joined", rows, pieces);
      let reads = 0;
      const read = (offset: number, length: number) => {
        reads++;
        return whole.read(offset, length);
      };
      const source = { ...whole, read };
      const view: TensorView = { name: "joined", dtype: "bf16", shape, source, offset: 0, ...(strides && { strides }) };
      return { view, reads: () => reads };
    }
    const shardsOf = (n: number, bytes: number) =>
      Array.from({ length: n }, (_, i) =>
        fileOf(`shard-${n}-${bytes}-${i}.bin`, bytes + 2 * (i + 1))("bf16", [1], 2 * (i + 1)),
      );
    const [E, D, F] = [3, 70, 37]; // F of a shard

    it.each([
      ["experts' columns, transposed", 2, E * D, 2 * F, [E, 2 * F, D], [D * 2 * F, 1, 2 * F]],
      ["experts' rows, transposed", 2, E, 2 * F * D, [E, D, 2 * F], [2 * F * D, 1, D]],
      ["one expert's columns, transposed", 2, D, 2 * F, [1, 2 * F, D], [D * 2 * F, 1, 2 * F]],
      ["a router, transposed", 2, D, 2 * F, [2 * F, D], [1, 2 * F]],
      ["columns side by side", 2, D, 2 * F, [D, 2 * F], undefined],
      ["columns of several blocks", 2, 3000, 2000, [3000, 2000], undefined],
      ["rows of several blocks each", 2, 1, 5_000_000, [5000, 1000], undefined],
      ["experts end to end", E, 1, 2 * F * D, [E, F, D], undefined],
    ] as const)("%s are read by native threads, to the same bytes", async (_, n, rows, run, shape, strides) => {
      const { view, reads } = composed(shardsOf(n, rows * run), rows, run, shape, strides);
      const loaded = await backend.load([view]);
      expect(reads()).toBe(0);
      const reference = openReference();
      const expected = await reference.read((await reference.load([view]))[0]!);
      expect(Buffer.from((await backend.read(loaded[0]!)).buffer).equals(Buffer.from(expected.buffer))).toBe(true);
    });
  });

  it("a view that stands twice is loaded once and shares memory", async () => {
    const view = fileOf("tied.bin", 1024)("f16", [8, 32], 0);
    const [a, b] = (await backend.load([view, view])) as [Tensor, Tensor];
    expect(a.data).toBe(b.data);
  });

  it("tells how far it is, in order, up to all", async () => {
    const view = fileOf("progress.bin", 34 * 2 ** 20);
    const seen: number[] = [];
    await backend.load([view("f16", [17, 2 ** 20], 0)], {
      onProgress: (done, total) => {
        expect(total).toBe(34 * 2 ** 20);
        seen.push(done);
      },
    });
    expect(seen[seen.length - 1]).toBe(34 * 2 ** 20);
    expect(seen).toEqual([...seen].sort((x, y) => x - y));
  });

  it("a file that ends too soon: what was wanted where, and what came", async () => {
    const view = fileOf("short.bin", 1000)("f16", [100, 10], 200);
    const error = await backend.load([view]).catch((e: unknown) => e);
    expect(error).toBeInstanceOf(CheckpointError);
    expect((error as Error).message).toMatch(/short\.bin: wanted 2000 bytes at offset 200, got 800/);
    expect((error as Error).stack).toMatch(/load\.ts/);
  });

  it("a file that is not there", async () => {
    const view = fileOf("gone.bin", 100)("f16", [5, 10], 0);
    rmSync(join(folder, "gone.bin"));
    await expect(backend.load([view])).rejects.toThrow(/gone\.bin: No such file/);
  });

  it("stops when asked, before and during", async () => {
    const view = fileOf("stop.bin", 64 * 2 ** 20)("f16", [32, 2 ** 20], 0);
    await expect(backend.load([view], { signal: AbortSignal.abort(new Error("enough")) })).rejects.toThrow("enough");
    const controller = new AbortController();
    const loading = backend.load([view], { signal: controller.signal });
    controller.abort(new Error("enough"));
    await expect(loading).rejects.toThrow("enough");
  });

  it("stops in the middle of a tensor that is computed as it is read, as 8-bit floats are", async () => {
    const controller = new AbortController();
    let reads = 0;
    const source = {
      name: "computed",
      byteLength: 64 * 2 ** 20,
      async read(_offset: number, length: number) {
        if (++reads === 2) controller.abort(new Error("enough"));
        return new Uint8Array(length);
      },
    };
    const view = { name: "w", dtype: "f16", shape: [32, 2 ** 20], source, offset: 0 } as const;
    await expect(backend.load([view], { signal: controller.signal })).rejects.toThrow("enough");
    expect(reads).toBe(2);
  });

  it("an error of onProgress ends the loading and comes back", async () => {
    const view = fileOf("throw.bin", 64)("f16", [4, 8], 0);
    const onProgress = () => {
      throw new Error("mine");
    };
    await expect(backend.load([view], { onProgress })).rejects.toThrow("mine");
  });

  it("sources without a path are read by their own function", async () => {
    const { source, ...rest } = fileOf("memory.bin", 4096)("f16", [4, 8], 64);
    const { path: _, ...memory } = source;
    await sameAsReference([
      { ...rest, source: memory },
      { ...rest, source: memory, strides: [1, 4] },
    ]);
  });

  it("more than 4 GiB in one buffer, of which only touched pages take memory", () => {
    const addon = loadAddon();
    const buffer = addon.allocate(5 * 2 ** 30);
    expect(buffer.byteLength).toBe(5 * 2 ** 30);
    const end = new Uint8Array(buffer, 5 * 2 ** 30 - 4, 4);
    end[3] = 7;
    expect(end[3]).toBe(7);
    addon.release(buffer);
    expect(buffer.byteLength).toBe(0);
  });
});
