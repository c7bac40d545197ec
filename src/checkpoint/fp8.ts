// 8-bit float matrices with a factor for each row, as compressed-tensors stores them (specification §14).

import { dequantize } from "../tensor/block-formats.ts";
import { dtypes, encodeBf16, encodeF16, f8E4m3ToF32 } from "../tensor/dtype.ts";
import { CheckpointError } from "../tensor/errors.ts";
import { elementCount, type TensorView } from "../tensor/tensor.ts";
import { show } from "./json.ts";
import { computed } from "./source.ts";

/**
 * What an `[O, I]` matrix of `f8_e4m3` stands for: each row times its factor of `scale`, `[O, 1]` (or one factor for all),
 * rounded to the factors' dtype as compressed-tensors decompresses it. It is computed as it is read.
 */
export function scaledRows(weight: TensorView, scale: TensorView): TensorView {
  const { name, shape, source } = weight;
  const [rows, columns] = shape as [number, number];
  const factors = elementCount(scale.shape);
  const { dtype } = scale;
  if (shape.length !== 2 || (factors !== rows && factors !== 1))
    throw new CheckpointError(
      `${source.name}: ${show(scale.name)} is [${scale.shape.join(", ")}] for ${show(name)}, [${shape.join(", ")}]; ` +
        "expected one factor for each row of a matrix, or one for all",
    );
  if (dtype !== "bf16" && dtype !== "f16" && dtype !== "f32")
    throw new CheckpointError(`${source.name}: ${show(scale.name)} is ${dtype}; expected bf16, f16 or f32`);
  const size = dtypes[dtype].blockBytes;
  const read = async (first: number, n: number) => {
    const [top, bottom] = [Math.floor(first / columns), Math.ceil((first + n) / columns)]; // rows that the range touches
    const [from, count] = factors === 1 ? [0, 1] : [top, bottom - top];
    const [codes, stored] = await Promise.all([
      source.read(weight.offset + first, n),
      scale.source.read(scale.offset + from * size, count * size),
    ]);
    const numbers = new Float32Array(count);
    dequantize(dtype, stored, numbers);
    const out = size === 2 ? new Uint16Array(n) : new Uint32Array(n);
    for (let row = top, at = 0; row < bottom; row++) {
      const values = products(numbers[factors === 1 ? 0 : row - top]!, dtype);
      for (const end = Math.min(n, (row + 1) * columns - first); at < end; at++) out[at] = values[codes[at]!]!;
    }
    return new Uint8Array(out.buffer);
  };
  return { name, dtype, shape, source: computed(name, size, rows * columns, read), offset: 0 };
}

const allValues = Float32Array.from({ length: 256 }, (_, code) => f8E4m3ToF32(code));

/** The bits of all 256 values times a factor. */
function products(factor: number, dtype: "bf16" | "f16" | "f32"): Uint16Array | Uint32Array {
  const scaled = allValues.map((value) => value * factor);
  if (dtype === "f32") return new Uint32Array(scaled.buffer);
  const bits = new Uint16Array(256);
  (dtype === "bf16" ? encodeBf16 : encodeF16)(scaled, bits);
  return bits;
}
