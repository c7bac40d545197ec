import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { dequantize } from "../../src/tensor/block-formats.ts";
import { dtypes } from "../../src/tensor/dtype.ts";
import { quantize } from "../../src/tensor/quantize.ts";
import { fromBase64 } from "./bytes.ts";

type KQuant = "q4_k" | "q5_k" | "q6_k";
interface Case {
  readonly name: string;
  readonly seed: number;
  readonly first: readonly number[];
  readonly rmse: Readonly<Record<KQuant, number>>;
  readonly q4_0: string;
  readonly q8_0: string;
}

const file = new URL("../golden/gguf/quantize_reference.json", import.meta.url);
const { cases } = JSON.parse(readFileSync(file, "utf8")) as { cases: readonly Case[] };

// As the file's note says.
function numbers({ name, seed }: Case): Float32Array {
  const u = () => {
    seed = (Math.imul(1664525, seed) + 1013904223) >>> 0;
    return seed / 2 ** 32;
  };
  const g = () => {
    let total = 0;
    for (let i = 0; i < 12; i++) total += u();
    return total - 6;
  };
  return Float32Array.from({ length: 2048 }, (_, i) => {
    if (name === "uniform") return (u() - 0.5) * 0.2;
    const t = g();
    if (name === "heavy-tailed") return t * t * t * 0.01;
    return name === "outliers" && i % 97 === 13 ? t * 0.02 * 50 : t * 0.02;
  });
}

describe.each(cases)("$name numbers", (golden) => {
  const x = numbers(golden);
  const encoded = (dtype: "q4_0" | "q8_0" | KQuant) => {
    const bytes = new Uint8Array((x.length / dtypes[dtype].blockElements) * dtypes[dtype].blockBytes);
    quantize(dtype, x, bytes);
    return bytes;
  };

  test("are those that llama.cpp was given", () => {
    expect([...x.subarray(0, 4)]).toEqual(golden.first);
  });

  test.each(["q4_0", "q8_0"] as const)("become llama.cpp's bytes in %s", (dtype) => {
    expect(encoded(dtype)).toEqual(fromBase64(golden[dtype]));
  });

  test.each(["q4_k", "q5_k", "q6_k"] as const)("come back from %s no further off than from llama.cpp's", (dtype) => {
    const y = new Float32Array(x.length);
    dequantize(dtype, encoded(dtype), y);
    const squares = x.reduce((sum, value, i) => sum + (y[i]! - value) ** 2, 0);
    expect(Math.sqrt(squares / x.length)).toBeLessThanOrEqual(golden.rmse[dtype]);
  });
});
