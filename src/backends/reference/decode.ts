// A view's bytes to plain numbers, whatever they are stored as.

import { dequantize } from "../../tensor/block-formats.ts";
import { dtypes, rowBytes } from "../../tensor/dtype.ts";
import { elementCount, type TensorView } from "../../tensor/tensor.ts";

const elementsAtOnce = 1 << 20; // 4 MiB of f32, and a multiple of every block

/** Fills `out` with the view's elements in row-major order. */
export async function decode(view: TensorView, out: Float32Array | Float64Array): Promise<void> {
  if (view.strides) return gather(view, out);
  for (let at = 0; at < out.length; at += elementsAtOnce) {
    const n = Math.min(elementsAtOnce, out.length - at);
    const bytes = await view.source.read(view.offset + rowBytes(view.dtype, at), rowBytes(view.dtype, n));
    const values = new Float32Array(n);
    dequantize(view.dtype, bytes, values);
    out.set(values, at);
  }
}

/** Reads the stretch of the file that a strided view touches and picks its elements. */
async function gather(view: TensorView, out: Float32Array | Float64Array): Promise<void> {
  const strides = view.strides!;
  const reach = view.shape.reduce((sum, extent, axis) => sum + (extent - 1) * strides[axis]!, 1);
  const bytes = await view.source.read(view.offset, reach * dtypes[view.dtype].blockBytes);
  const values = new Float32Array(reach);
  dequantize(view.dtype, bytes, values);
  const at = new Array<number>(view.shape.length).fill(0);
  for (let i = 0; i < elementCount(view.shape); i++) {
    out[i] = values[at.reduce((sum, coordinate, axis) => sum + coordinate * strides[axis]!, 0)]!;
    for (let axis = at.length - 1; axis >= 0 && ++at[axis]! === view.shape[axis]; axis--) at[axis] = 0;
  }
}
