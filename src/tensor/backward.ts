// The way back of the operations, and the few that only training has: what a backend adds so that a tape can record it.
// Arguments come from the tape alone, which has had their shapes checked by the operations that it walks back.
//
// T tokens · I in · O out · H query heads · K key/value heads · d head dim · E experts · V vocabulary
// dy is the gradient of the loss by an operation's result y; results have the shapes of what they are gradients by.

import type { Routes, Span } from "./backend.ts";
import type { Shape, Tensor } from "./tensor.ts";

/** What keeps a router's load balanced and its logits small; see `routerLoss`. */
export interface RouterLoss {
  /** `[E]`: each expert's share of the choices, a constant on the way back. */
  readonly shares: Float64Array;
  /** Weight of `E · Σₑ sharesₑ · meanₜ softmax(logits)ₜₑ` (Fedus et al. 2021, arXiv:2101.03961, eq. 4): 1 when balanced. */
  readonly balance: number;
  /** Weight of `meanₜ (log Σₑ exp logitsₜₑ)²` (Zoph et al. 2022, arXiv:2202.08906, eq. 5). */
  readonly z: number;
}

export interface Backward {
  /** Rows in groups: rows `starts[e] … starts[e + 1] − 1` of x `[n, I]` times matrix e of `[E, O, I]` -> `[n, O]`. */
  groupedLinear(x: Tensor, bank: Tensor, starts: Int32Array): Tensor;
  /** By x of `linear`, or of `groupedLinear`: `dy [T, O] · w [O, I]` -> `[T, I]`. `exact`: as in `linear`. */
  linearInput(dy: Tensor, w: Tensor, starts?: Int32Array, exact?: boolean): Tensor;
  /** By w: `dyᵀ · x` -> `[O, I]`, or `[E, O, I]`: 0 for a group without rows. */
  linearWeight(dy: Tensor, x: Tensor, starts?: Int32Array, exact?: boolean): Tensor;
  rmsNormBackward(x: Tensor, w: Tensor | null, eps: number, dy: Tensor): { readonly x: Tensor; readonly w?: Tensor };
  layerNormBackward(
    x: Tensor,
    w: Tensor,
    eps: number,
    dy: Tensor,
  ): { readonly x: Tensor; readonly w: Tensor; readonly b: Tensor };
  swigluBackward(gate: Tensor, up: Tensor, dy: Tensor): { readonly gate: Tensor; readonly up: Tensor };
  geluBackward(x: Tensor, dy: Tensor): Tensor;
  /** `attend` without a cache, and of each row's scores log Σ exp `[T, H]`, for the way back. */
  attend(q: Tensor, k: Tensor, v: Tensor, span: Span): { readonly y: Tensor; readonly lse: Tensor };
  /** Nothing of `[T, T]` is built. */
  attendBackward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    y: Tensor,
    lse: Tensor,
    dy: Tensor,
    span: Span,
  ): { readonly q: Tensor; readonly k: Tensor; readonly v: Tensor };
  /** `[T, topK]`: sigmoid of the chosen logits, as in `Routes.scores`, for choices that were made otherwise. */
  scores(logits: Tensor, choice: Pick<Routes, "topK" | "experts">): Tensor;
  /** By the logits `[T, E]`, of which only the chosen have any. */
  scoresBackward(logits: Tensor, choice: Pick<Routes, "topK" | "experts">, dy: Tensor): Tensor;
  /** `dy` is a scalar. */
  crossEntropyBackward(logits: Tensor, targets: Int32Array, dy: Tensor): Tensor;
  /** Scalar `[]`: `balance · (…) + z · (…)` of the router's logits `[T, E]`. */
  routerLoss(logits: Tensor, loss: RouterLoss): Tensor;
  routerLossBackward(logits: Tensor, loss: RouterLoss, dy: Tensor): Tensor;
  /** Row i of x is added to row `at[i]` of n rows of zeros. */
  scatterRows(x: Tensor, at: Int32Array, n: number): Tensor;
  /** Sums over the axes where `shape` has 1. */
  sumTo(x: Tensor, shape: Shape): Tensor;
  /** Nobody will use x, or a reshape of it, again: its memory goes back now. */
  free(x: Tensor): void;
}
