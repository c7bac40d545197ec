// The way back in C++ (tensor/backward.ts): buffers and shapes here, numbers in native/.

import type { Routes, Span } from "../../tensor/backend.ts";
import type { Backward, RouterLoss } from "../../tensor/backward.ts";
import { dtypes } from "../../tensor/dtype.ts";
import { elementCount, type Shape, type Tensor } from "../../tensor/tensor.ts";
import { type Addon, type EngineHandle, roundedType } from "./addon.ts";
import type { Place } from "./memory.ts";
import { sumWalks } from "./walk.ts";

type Made = Tensor & { readonly data: Place };

/** What the backend does for its way back. */
interface Inside {
  readonly addon: Addon;
  readonly engine: EngineHandle;
  /** Whether products may round their factors to bf16. */
  readonly rounded: boolean;
  make(shape: Shape): Made;
  /** The tensor's numbers as float32: where they are, or a decoded copy. */
  floats(x: Tensor): Place;
  free(x: Tensor): void;
  attend(q: Tensor, k: Tensor, v: Tensor, span: Span, lse: Place): Tensor;
}

const at = ({ buffer, at }: Place) => [buffer, at] as const;
const atOrNull = (place: Place | null) => [place?.buffer ?? null, place?.at ?? 0] as const;

export class NativeBackward implements Backward {
  readonly #inside: Inside;
  readonly #addon: Addon;
  readonly #engine: EngineHandle;

  constructor(inside: Inside) {
    this.#inside = inside;
    this.#addon = inside.addon;
    this.#engine = inside.engine;
  }

  /** Where the numbers are, as the border takes it. */
  #at(x: Tensor): readonly [ArrayBuffer, number] {
    return at(this.#inside.floats(x));
  }

  groupedLinear(x: Tensor, bank: Tensor, starts: Int32Array): Tensor {
    const [N, I] = x.shape as [number, number];
    const O = bank.shape[1]!;
    const y = this.#inside.make([N, O]);
    const type = dtypes.f32.ggmlType! + (this.#inside.rounded ? roundedType : 0);
    this.#addon.groupedLinear(this.#engine, N, I, O, type, ...this.#at(x), starts, ...this.#at(bank), ...at(y.data));
    return y;
  }

  linearInput(dy: Tensor, w: Tensor, starts = Int32Array.of(0, dy.shape[0]!), exact = false): Tensor {
    const [N, O] = dy.shape as [number, number];
    const I = w.shape.at(-1)!;
    const dx = this.#inside.make([N, I]);
    this.#addon.linearInput(
      this.#engine,
      N,
      I,
      O,
      ...this.#at(dy),
      starts,
      this.#inside.rounded && !exact,
      ...this.#at(w),
      ...at(dx.data),
    );
    return dx;
  }

  linearWeight(dy: Tensor, x: Tensor, starts?: Int32Array, exact = false): Tensor {
    const [N, O] = dy.shape as [number, number];
    const I = x.shape[1]!;
    const dw = this.#inside.make(starts ? [starts.length - 1, O, I] : [O, I]);
    const groups = starts ?? Int32Array.of(0, N);
    this.#addon.linearWeight(
      this.#engine,
      N,
      I,
      O,
      ...this.#at(dy),
      groups,
      this.#inside.rounded && !exact,
      ...this.#at(x),
      ...at(dw.data),
    );
    return dw;
  }

  rmsNormBackward(x: Tensor, w: Tensor | null, eps: number, dy: Tensor): { x: Tensor; w?: Tensor } {
    const n = x.shape.at(-1)!;
    const [dx, dw] = [this.#inside.make(x.shape), w && this.#inside.make([n])];
    this.#addon.rmsNormBackward(
      ...([this.#engine, elementCount(x.shape) / n, n, eps, ...this.#at(x)] as const),
      ...([...atOrNull(w && this.#inside.floats(w)), ...this.#at(dy), ...at(dx.data)] as const),
      ...([...atOrNull(dw?.data ?? null), null, 0] as const),
    );
    return dw ? { x: dx, w: dw } : { x: dx };
  }

  layerNormBackward(x: Tensor, w: Tensor, eps: number, dy: Tensor): { x: Tensor; w: Tensor; b: Tensor } {
    const n = x.shape.at(-1)!;
    const [dx, dw, db] = [this.#inside.make(x.shape), this.#inside.make([n]), this.#inside.make([n])];
    this.#addon.layerNormBackward(
      ...([this.#engine, elementCount(x.shape) / n, n, eps, ...this.#at(x), ...this.#at(w), ...this.#at(dy)] as const),
      ...([...at(dx.data), ...at(dw.data), ...at(db.data)] as const),
    );
    return { x: dx, w: dw, b: db };
  }

  swigluBackward(gate: Tensor, up: Tensor, dy: Tensor): { gate: Tensor; up: Tensor } {
    const [dGate, dUp] = [this.#inside.make(gate.shape), this.#inside.make(up.shape)];
    this.#addon.swigluBackward(
      ...([this.#engine, elementCount(gate.shape), ...this.#at(gate), ...this.#at(up), ...this.#at(dy)] as const),
      ...([...at(dGate.data), ...at(dUp.data)] as const),
    );
    return { gate: dGate, up: dUp };
  }

  geluBackward(x: Tensor, dy: Tensor): Tensor {
    const dx = this.#inside.make(x.shape);
    this.#addon.geluBackward(this.#engine, elementCount(x.shape), ...this.#at(x), ...this.#at(dy), ...at(dx.data));
    return dx;
  }

  attend(q: Tensor, k: Tensor, v: Tensor, span: Span): { y: Tensor; lse: Tensor } {
    const lse = this.#inside.make(q.shape.slice(0, 2));
    return { y: this.#inside.attend(q, k, v, span, lse.data), lse };
  }

  attendBackward(q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, dy: Tensor, span: Span) {
    const { segments, chunk = 0, causal = true } = span;
    const [T, H, d] = q.shape as [number, number, number];
    const flat = Int32Array.from(segments.flatMap(({ row, length, position }) => [row, length, position, 0]));
    const [dq, dk, dv] = [q, k, v].map((x) => this.#inside.make(x.shape)) as [Made, Made, Made];
    this.#addon.attendBackward(
      ...([this.#engine, T, H, k.shape[1]!, d, chunk, causal] as const),
      ...([...this.#at(q), ...this.#at(k), ...this.#at(v), ...this.#at(y), ...this.#at(lse), ...this.#at(dy)] as const),
      ...([flat, ...at(dq.data), ...at(dk.data), ...at(dv.data)] as const),
    );
    return { q: dq, k: dk, v: dv };
  }

  scores(logits: Tensor, { topK, experts }: Pick<Routes, "topK" | "experts">): Tensor {
    const [T, E] = logits.shape as [number, number];
    const y = this.#inside.make([T, topK]);
    this.#addon.scores(this.#engine, T, E, topK, ...this.#at(logits), experts, ...at(y.data));
    return y;
  }

  scoresBackward(logits: Tensor, { topK, experts }: Pick<Routes, "topK" | "experts">, dy: Tensor): Tensor {
    const [T, E] = logits.shape as [number, number];
    const dx = this.#inside.make(logits.shape);
    this.#addon.scoresBackward(
      ...([this.#engine, T, E, topK, ...this.#at(logits), experts, ...this.#at(dy), ...at(dx.data)] as const),
    );
    return dx;
  }

  crossEntropyBackward(logits: Tensor, targets: Int32Array, dy: Tensor): Tensor {
    const [T, V] = logits.shape as [number, number];
    const dx = this.#inside.make(logits.shape);
    this.#addon.crossEntropyBackward(
      ...([this.#engine, T, V, ...this.#at(logits), targets, ...this.#at(dy), ...at(dx.data)] as const),
    );
    return dx;
  }

  routerLoss(logits: Tensor, { shares, balance, z }: RouterLoss): Tensor {
    const [T, E] = logits.shape as [number, number];
    const y = this.#inside.make([]);
    const own = shares.slice().buffer; // begins at its first byte
    this.#addon.routerLoss(this.#engine, T, E, balance, z, own, 0, ...this.#at(logits), ...at(y.data));
    return y;
  }

  routerLossBackward(logits: Tensor, { shares, balance, z }: RouterLoss, dy: Tensor): Tensor {
    const [T, E] = logits.shape as [number, number];
    const dx = this.#inside.make(logits.shape);
    const own = shares.slice().buffer; // as above
    this.#addon.routerLossBackward(
      ...([this.#engine, T, E, balance, z, own, 0, ...this.#at(logits), ...this.#at(dy), ...at(dx.data)] as const),
    );
    return dx;
  }

  scatterRows(x: Tensor, rows: Int32Array, n: number): Tensor {
    const rest = x.shape.slice(1);
    const y = this.#inside.make([n, ...rest]);
    this.#addon.scatterRows(this.#engine, n, elementCount(rest), rows, ...this.#at(x), ...at(y.data));
    return y;
  }

  sumTo(x: Tensor, shape: Shape): Tensor {
    const y = this.#inside.make(shape);
    this.#addon.sumAxes(this.#engine, ...sumWalks(x.shape, shape), ...this.#at(x), ...at(y.data));
    return y;
  }

  free(x: Tensor): void {
    this.#inside.free(x);
  }
}
