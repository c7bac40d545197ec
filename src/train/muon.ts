// Muon (Jordan 2024): the momentum of a matrix, made nearly orthogonal before it is taken off the weights. Written in
// the model's own operations.
//
// O out · I in · r = min(O, I)

import type { TrainingBackend } from "../tensor/backend.ts";
import { linear, permute, reshape, rows, splice } from "../tensor/ops.ts";
import { elementCount, type Tensor } from "../tensor/tensor.ts";

export interface MuonStep {
  readonly rate: number;
  readonly momentum: number;
  readonly decay: number;
  /** The gradient is multiplied by this first: clipping. */
  readonly scale: number;
}

/**
 * One step for a matrix `[O, I]`, or for each of a stack `[E, O, I]`; changes w and the momentum m. The update's root mean
 * square is 0.2 as AdamW's is, so that rates carry over (Liu et al. 2025, arXiv:2502.16982).
 */
export async function muonStep(b: TrainingBackend, w: Tensor, g: Tensor, m: Tensor, how: MuonStep): Promise<void> {
  const { rate, momentum, decay, scale } = how;
  await b.scope(async () => {
    b.blend(m, g, momentum, scale);
    let update = rows(m, all(m.shape[0]!)); // a copy
    b.blend(update, g, momentum, scale); // Nesterov's look ahead
    const [O, I] = w.shape.slice(-2) as [number, number];
    if (w.shape.length === 2) update = orthogonalised(b, update);
    for (let e = 0; w.shape.length === 3 && e < w.shape[0]!; e++) {
      const at = Int32Array.of(e);
      update = splice(update, reshape(orthogonalised(b, reshape(rows(update, at), [O, I])), [1, O, I]), at);
    }
    b.blend(w, update, 1 - rate * decay, -rate * 0.2 * Math.sqrt(Math.max(O, I)));
  });
}

// Newton–Schulz of the fifth order; the coefficients make small singular values grow fastest (Jordan 2024).
const [a, c3, c5] = [3.4445, -4.775, 2.0315];
const rounds = 5;

/** A matrix with singular values near 1 and the singular vectors of x `[O, I]`. */
export function orthogonalised(b: TrainingBackend, x: Tensor): Tensor {
  const [O, I] = x.shape as [number, number];
  let y = O > I ? permute(x, [1, 0]) : rows(x, all(O)); // [r, ·], a copy
  b.blend(y, y, 1 / (Math.sqrt(b.sumSquares(x)) + 1e-7), 0);
  for (let round = 0; round < rounds; round++) {
    const square = linear(y, y); // y·yᵀ [r, r]
    const mixed = linear(square, square); // it is symmetric
    b.blend(mixed, square, c5, c3);
    const next = linear(mixed, permute(y, [1, 0])); // [r, ·]
    b.blend(next, y, 1, a);
    y = next;
  }
  return O > I ? permute(y, [1, 0]) : y;
}

const all = (n: number) => Int32Array.from({ length: n }, (_, i) => i);

/** Whether Muon takes a weight: the matrices of the decoder's layers. Tables, the output, norms and biases are AdamW's. */
export function isMuons(name: string, w: Tensor): boolean {
  return /^text\.layers\./.test(name) && !name.endsWith(".router") && w.shape.length > 1 && elementCount(w.shape) > 0;
}
