// What a call says that no kernel can do: sizes of 0, odd ones, and memory that there is not.

import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Addon, type EngineHandle, loadAddon, packedType } from "../../../src/backends/native/addon.ts";
import { openReference } from "../../../src/backends/reference/reference.ts";
import { attend, crossEntropy, experts, rope, route } from "../../../src/tensor/ops.ts";

function built(): Addon | undefined {
  try {
    return loadAddon();
  } catch {
    return undefined; // no compiler: the build said so
  }
}

const addon = built();
const sizes = [0, 1, 3];
const buffer = () => new ArrayBuffer(4096); // more than any call below needs

describe.skipIf(!addon)("the border (skipped where the addon is not built)", () => {
  const {
    rope,
    experts,
    feedForward,
    threeProducts,
    attend,
    crossEntropy,
    route,
    linear,
    rows,
    splice,
    rmsNorm,
    recode,
    transpose,
    add,
    gelu,
    mul,
  } = addon ?? ({} as Addon);
  let e: EngineHandle;
  beforeAll(() => {
    e = addon!.open(2, addon!.isas()[0]!);
  });
  afterAll(() => addon!.close(e));

  it("turns pairs only, and writes nothing past them", () => {
    for (const T of sizes)
      for (const H of sizes) {
        for (const d of [1, 3]) expect(() => rope(e, T, H, d, buffer(), 0, buffer(), 0, buffer(), 0)).toThrow(/odd/);
        for (const d of [0, 2]) rope(e, T, H, d, buffer(), 0, buffer(), 0, buffer(), 0);
      }
  });

  it("refuses experts of no width, and no experts", () => {
    for (const T of sizes)
      for (const [D, F, E, k] of combinations(4)) {
        const pair = () => [buffer(), 0] as const;
        const bank = [0, 0, 0, ...pair(), ...pair(), ...pair()] as const;
        const chosen = new Int32Array(T * k!);
        const call = () => experts(e, T, D!, F!, E!, k!, ...pair(), ...bank, chosen, ...pair(), ...pair(), false);
        if (D! * F! * E! * k! > 0) call();
        else expect(call, `${[T, D, F, E, k]}`).toThrow(/at least 1/);
      }
  });

  it("refuses a feed-forward and three products of no width", () => {
    const pair = () => [buffer(), 0] as const;
    const packed = 8 + packedType; // q8_0
    const gated = [packed, packed, packed, ...pair(), ...pair(), ...pair()] as const;
    for (const T of sizes) {
      for (const [D, F] of [
        [0, 32],
        [32, 0],
      ] as const)
        expect(() => feedForward(e, T, D, F, ...pair(), ...pair(), ...gated)).toThrow(/at least 1/);
      const product = [0, packed, ...pair(), ...pair()] as const;
      expect(() => threeProducts(e, T, 0, ...pair(), ...product, ...product, ...product)).toThrow(/at least 1/);
    }
  });

  it("refuses attention without heads", () => {
    for (const T of sizes)
      for (const [H, K, d] of combinations(3)) {
        const segments = T > 0 ? Int32Array.of(0, T, 0, 0) : new Int32Array();
        const qkv = [buffer(), 0, buffer(), 0, buffer(), 0] as const;
        const cache = [null, 0, null, 0] as const;
        const call = () =>
          attend(
            ...([e, T, H!, K!, d!, 0, true, false, 0, 1, 0, ...qkv, segments, new Int32Array()] as const),
            ...([...cache, buffer(), 0, null, 0] as const),
          );
        if (H! * K! * d! > 0 && H! % K! === 0) call();
        else expect(call, `${[T, H, K, d]}`).toThrow(/at least 1/);
      }
  });

  it("refuses an empty vocabulary, and more choices than there are", () => {
    for (const T of sizes) {
      expect(() => crossEntropy(e, T, 0, buffer(), 0, new Int32Array(T), buffer(), 0)).toThrow(/at least 1/);
      for (const V of [1, 3]) crossEntropy(e, T, V, buffer(), 0, new Int32Array(T), buffer(), 0);
      for (const [E, k] of combinations(2)) {
        const call = () => route(e, T, E!, k!, buffer(), 0, new Int32Array(T * k!), buffer(), 0);
        if (k! >= 1 && k! <= E!) call();
        else expect(call).toThrow(/choices/);
      }
    }
  });

  it("takes any other size, with nothing to do for 0", () => {
    for (const [n, width, out] of combinations(3)) {
      linear(e, n!, width!, out!, 0, buffer(), 0, buffer(), 0, null, 0, buffer(), 0);
      rows(e, n!, width!, 0, buffer(), 0, new Int32Array(n! && out!), buffer(), 0);
      splice(e, n!, width!, buffer(), 0, new Int32Array(n! && out!), buffer(), 0, buffer(), 0);
      rmsNorm(e, n!, width!, 1e-5, buffer(), 0, null, 0, null, 0, buffer(), 0);
      recode(e, 0, 1, n!, width!, buffer(), 0, buffer(), 0);
      mul(e, Int32Array.of(n!, 0, width!, 1), buffer(), 0, buffer(), 0, buffer(), 0);
      add(e, n!, buffer(), 0, buffer(), 0, buffer(), 0);
      gelu(e, n!, buffer(), 0, buffer(), 0);
    }
  });

  it("takes any size on the way back, and refuses groups that do not cover the rows", () => {
    const some = () => [buffer(), 0] as const;
    for (const [n, I, O] of combinations(3)) {
      const starts = Int32Array.of(0, n!);
      addon!.groupedLinear(e, n!, I!, O!, 0, ...some(), starts, ...some(), ...some());
      addon!.linearInput(e, n!, I!, O!, ...some(), starts, false, ...some(), ...some());
      addon!.linearWeight(e, n!, I!, O!, ...some(), starts, true, ...some(), ...some());
      addon!.rmsNormBackward(e, n!, I!, 1e-5, ...some(), null, 0, ...some(), ...some(), null, 0, null, 0);
      addon!.layerNormBackward(e, n!, I!, 1e-5, ...some(), ...some(), ...some(), ...some(), ...some(), ...some());
      addon!.swigluBackward(e, n!, ...some(), ...some(), ...some(), ...some(), ...some());
      addon!.geluBackward(e, n!, ...some(), ...some(), ...some());
      addon!.scatterRows(e, n!, I!, new Int32Array(n! && O!), ...some(), ...some());
      addon!.sumAxes(e, Int32Array.of(I!, 1), Int32Array.of(n!, I!), ...some(), ...some());
      const segments = n! > 0 ? Int32Array.of(0, n!, 0, 0) : new Int32Array();
      const six = () => [...some(), ...some(), ...some(), ...some(), ...some(), ...some()] as const;
      addon!.attendBackward(e, n!, 2, 1, 4, I!, true, ...six(), segments, ...some(), ...some(), ...some());
      for (const groups of [[0], [1, n!], [0, n! + 1], [0, 3, 1, n!]])
        expect(() =>
          addon!.linearInput(e, n!, I!, O!, ...some(), Int32Array.from(groups), true, ...some(), ...some()),
        ).toThrow(/groups|index/);
    }
    const none = new Int32Array();
    expect(() => addon!.scores(e, 0, 0, 1, ...some(), none, ...some())).toThrow(/need an expert/);
    expect(() => addon!.scores(e, 1, 3, 1, ...some(), none, ...some())).toThrow(/every row/);
    expect(() => addon!.scoresBackward(e, 1, 3, 1, ...some(), Int32Array.of(3), ...some(), ...some())).toThrow(
      /index 3/,
    );
    expect(() => addon!.routerLoss(e, 0, 3, 1, 1, ...some(), ...some(), ...some())).toThrow(/a row and an expert/);
    expect(() => addon!.crossEntropyBackward(e, 1, 3, ...some(), Int32Array.of(3), ...some(), ...some())).toThrow(
      /outside the vocabulary/,
    );
  });

  it("transposes within its buffers only", () => {
    const [x, out] = [buffer(), buffer()];
    transpose(e, 2, 0, 5, 0, 0, x, 0, out, 0);
    transpose(e, 2, 32, 64, 128, 64, x, 0, out, 0);
    expect(() => transpose(e, 2, 33, 64, 128, 66, x, 0, out, 0)).toThrow(/needs 4224 bytes/);
    expect(() => transpose(e, 2, 32, 64, 128, 66, x, 0, out, 0)).toThrow(/needs 4222 bytes/);
    expect(() => transpose(e, 2, 32, 64, 127, 64, x, 0, out, 0)).toThrow(/overlap/);
    expect(() => transpose(e, 2, 32, 64, 128, 63, x, 0, out, 0)).toThrow(/overlap/);
    expect(() => transpose(e, 3, 2, 2, 6, 6, x, 0, out, 0)).toThrow(/1, 2, 4 or 8 bytes/);
    expect(() => transpose(e, 2, 2 ** 40, 2 ** 40, 2 ** 41, 2 ** 41, x, 0, out, 0)).toThrow(/too large/);
  });

  it("reads within its buffers only, rows together or columns together", async () => {
    const read = (rows: number, columns: number, columnStride: number, rowStride: number, offset = 0) =>
      new Promise<string | null>((done) => {
        const unit = Float64Array.of(0, 0, rows * columns * 2, 0, 1, rows, columns * 2, 2, 0);
        const scatter = Float64Array.of(0, offset, 0, columns, columnStride, rowStride);
        const onEvent = (_: number, finished: boolean, error: string | null) => finished && done(error);
        addon!.read([fileURLToPath(import.meta.url)], unit, scatter, [buffer()], onEvent);
      });
    expect(await read(32, 64, 64, 2)).toBe(null);
    expect(await read(16, 64, 2, 256)).toBe(null);
    expect(await read(16, 64, 2, 256, 128)).toBe(null);
    await expect(read(16, 64, 2, 256, 129)).rejects.toThrow(/outside/);
    await expect(read(17, 64, 2, 256)).rejects.toThrow(/outside/);
    await expect(read(16, 64, 2, 2 ** 50)).rejects.toThrow(/outside/);
    await expect(read(32, 65, 64, 2)).rejects.toThrow(/outside/);
    await expect(read(2, 2, 4, 4)).rejects.toThrow(/outside/);
  });

  it("refuses work for which there is no memory, and goes on", () => {
    expect(() => recode(e, 0, 1, 0, 2 ** 48, buffer(), 0, buffer(), 0)).toThrow(/bytes of working memory/);
    expect(recode(e, 0, 1, 1, 3, buffer(), 0, buffer(), 0)).toBe(-1);
  });

  it("refuses a call that ends before its arguments do", () => {
    expect(() => (linear as (...args: unknown[]) => void)(e, 1, 1, 1, 0, buffer(), 0, buffer(), 0, null)).toThrow(
      /expected more/,
    );
  });
});

describe("operations", () => {
  const backend = openReference();
  const zeros = (...shape: number[]) => backend.from(new Float32Array(shape.reduce((a, b) => a * b, 1)), shape);
  const span = { segments: [] };

  it("refuse what no backend can do, in a sentence", async () => {
    expect(() => rope(zeros(1, 1, 3), zeros(1, 1, 2))).toThrow(/d even/);
    expect(() => attend(zeros(1, 0, 2), zeros(1, 1, 2), zeros(1, 1, 2), span)).toThrow(/none of H, K, d 0/);
    expect(() => attend(zeros(1, 1, 0), zeros(1, 1, 0), zeros(1, 1, 0), span)).toThrow(/none of H, K, d 0/);
    expect(() => route(zeros(1, 2), 0)).toThrow(/expected 1 to 2/);
    expect(() => crossEntropy(zeros(1, 0), new Int32Array([-1]))).toThrow(/at least 1/);
    const bank = (E: number, F: number, D: number) => ({
      ...{ gate: zeros(E, F, D), up: zeros(E, F, D), down: zeros(E, D, F) },
    });
    const routes = { topK: 1, experts: new Int32Array(1), scores: zeros(1, 1) };
    expect(() => experts(zeros(1, 0), bank(1, 1, 0), routes)).toThrow(/none of D, E, F 0/);
    const none = { topK: 0, experts: new Int32Array(), scores: zeros(1, 0) };
    expect(() => experts(zeros(1, 1), bank(1, 1, 1), none)).toThrow(/at least 1/);
    backend.close();
  });
});

/** Every choice of `n` sizes. */
function combinations(n: number): number[][] {
  return n === 0 ? [[]] : combinations(n - 1).flatMap((rest) => sizes.map((size) => [...rest, size]));
}
