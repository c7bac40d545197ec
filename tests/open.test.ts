import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { openCheckpoint } from "../src/checkpoint/open.ts";
import { type OutTensor, writeGguf } from "../src/checkpoint/writers.ts";
import { presets } from "../src/model/config.ts";
import { availableMemory, openModel, roomFor } from "../src/open.ts";
import { CapacityError, RequestError } from "../src/tensor/errors.ts";
import { storedBytes, type TensorView } from "../src/tensor/tensor.ts";
import { converted } from "./checkpoint/converted.ts";

const view = (dtype: "bf16" | "f32", ...shape: number[]): TensorView => ({
  ...{ name: "w", dtype, shape, offset: 0 },
  source: { name: "made up", byteLength: 0, read: () => Promise.reject(new Error("not read here")) },
});
const GB = 1e9;

describe("room for a model", () => {
  const weights = [view("bf16", 1000, 1_000_000)]; // 2 GB

  it("is counted before anything is loaded, and the refusal tells the way out", () => {
    expect(() => roomFor(weights, presets.scout, { context: 8192 }, false, 3 * GB)).toThrow(
      new CapacityError(
        "the weights take 2.0 GB and the cache for 8,192 tokens 1.6 GB, and 3.0 GB of memory are available; " +
          "expected room for both and 0.556 GB to work with: take a smaller `context`, " +
          "a checkpoint of fewer bits (llama4 convert), or a machine with more memory (llama4 plan)",
      ),
    );
    expect(() => roomFor(weights, presets.scout, {}, false, 1 * GB)).toThrow(CapacityError);
  });

  it("holds a context of 32,768 tokens, or of what is left", () => {
    expect(roomFor(weights, presets.scout, {}, false, 100 * GB).context).toBe(32_768);
    const { context, kvBytes } = roomFor(weights, presets.scout, {}, false, 3.55 * GB);
    expect(context).toBeGreaterThan(4096);
    expect(kvBytes).toBeLessThanOrEqual(GB);
  });

  it("holds keys and values in f32 for a model in f32", () => {
    expect(roomFor([view("f32", 10, 10)], presets.scout, {}, false, 100 * GB).kvDtype).toBe("f32");
    expect(roomFor(weights, presets.scout, {}, false, 100 * GB).kvDtype).toBe("f16");
    expect(roomFor(weights, presets.scout, {}, true, 100 * GB)).toMatchObject({ kvDtype: "f32", weightBytes: 4 * GB });
  });

  it("is refused for a context that the model was not made for", () => {
    expect(() => roomFor(weights, presets.maverick, { context: 2_000_000 }, false, 1e15)).toThrow(
      new RequestError("context is 2000000; expected a whole number from 1 to the model's 1048576"),
    );
  });
});

describe("threads", () => {
  it.each([0, 5000, 1.5, Number.NaN])("%d of them are refused, not computed with the reference", async (threads) => {
    await expect(openModel("nowhere", { threads })).rejects.toThrow(
      new RequestError(`threads is ${threads}; expected a whole number from 1 to 1024`),
    );
  });

  it("are refused beside the reference backend, which has one", async () => {
    await expect(openModel("nowhere", { backend: "reference", threads: 2 })).rejects.toThrow(
      new RequestError("threads is 2 with the reference backend, which computes in one; leave out one of them"),
    );
  });
});

describe("a backend or a type of keys and values that there is not", () => {
  it.each([
    [{ backend: "gpu" }, 'backend is "gpu"; expected one of native, reference'],
    [{ kvDtype: "q9" }, 'kvDtype is "q9"; expected one of f32, f16, q8_0'],
  ])("%j is refused, and no other taken for it", async (options, message) => {
    await expect(openModel("nowhere", options as object)).rejects.toThrow(new RequestError(message));
  });
});

describe("available memory", () => {
  const files = (contents: Record<string, string>) => (path: string) => contents[path];
  const meminfo = { "/proc/meminfo": "MemTotal: 16000 kB\nMemFree: 1 kB\nMemAvailable:   8000 kB" };

  it("is what Linux says is available, not what is free", () => {
    expect(availableMemory(files(meminfo))).toBe(8000 * 1024);
    expect(availableMemory(files({ ...meminfo, "/sys/fs/cgroup/memory.max": "max" }))).toBe(8000 * 1024);
  });

  it("is what the container leaves, with the page cache that it can drop", () => {
    const cgroup = {
      "/sys/fs/cgroup/memory.max": "1000000",
      "/sys/fs/cgroup/memory.current": "900000",
      "/sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 50000\nactive_file 3",
    };
    expect(availableMemory(files({ ...meminfo, ...cgroup }))).toBe(150_000);
  });

  it("is unknown where nothing says it", () => {
    expect(availableMemory(files({}))).toBe(Infinity);
  });
});

it("says so where a vision encoder inside a text model's file is left out", async () => {
  const folder = mkdtempSync(join(tmpdir(), "llama4-open-"));
  const [text, both] = [join(folder, "text.gguf"), join(folder, "both.gguf")];
  try {
    await converted(join(import.meta.dirname, "golden/llama4/dense"), text);
    const { metadata, tensors, close } = await openCheckpoint(text);
    const out = tensors.map(
      (view): OutTensor => ({
        ...view,
        async *chunks() {
          yield await view.source.read(view.offset, storedBytes(view));
        },
      }),
    );
    const position = {
      ...{ name: "v.class_embd", dtype: "f32", shape: [8] },
      async *chunks() {
        yield new Uint8Array(32);
      },
    } satisfies OutTensor;
    await writeGguf(both, new Map(metadata!), [...out, position]);
    await close();
    const warnings: string[] = [];
    for (const path of [text, both])
      (await openModel(path, { backend: "reference", onWarning: (message) => warnings.push(message) })).close();
    expect(warnings).toEqual([
      expect.stringContaining("tensors of a vision encoder (1, as v.class_embd) stand inside"),
    ]);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
