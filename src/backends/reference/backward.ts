// The specification of the way back: each operation's derivative as its shortest correct loops, like reference.ts.
//
// T tokens · I in · O out · H query heads · K key/value heads · d head dim · E experts · V vocabulary

import type { Backend, Routes, Span } from "../../tensor/backend.ts";
import type { Backward, RouterLoss } from "../../tensor/backward.ts";
import { elementCount, type Shape, type Tensor } from "../../tensor/tensor.ts";
import { broadcastIndex, dot, erf, type Numbers, numbers, seenRows, sigmoid, softmax } from "./numbers.ts";

export class ReferenceBackward implements Backward {
  readonly #backend: Backend;
  readonly #zeros: (n: number) => Numbers;

  constructor(backend: Backend, zeros: (n: number) => Numbers) {
    this.#backend = backend;
    this.#zeros = zeros;
  }

  #make(shape: Shape, fill: (out: Numbers) => void): Tensor {
    const data = this.#zeros(elementCount(shape));
    fill(data);
    return { shape, dtype: data instanceof Float32Array ? "f32" : "f64", backend: this.#backend, data };
  }

  groupedLinear(x: Tensor, bank: Tensor, starts: Int32Array): Tensor {
    const [n, I] = x.shape as [number, number];
    const [E, O] = bank.shape as [number, number];
    return this.#make([n, O], (out) => {
      for (let e = 0; e < E; e++)
        for (let t = starts[e]!; t < starts[e + 1]!; t++)
          for (let o = 0; o < O; o++) out[t * O + o] = dot(numbers(x), t * I, numbers(bank), (e * O + o) * I, I);
    });
  }

  linearInput(dy: Tensor, w: Tensor, starts = Int32Array.of(0, dy.shape[0]!)): Tensor {
    const [T, O] = dy.shape as [number, number];
    const I = w.shape.at(-1)!;
    return this.#make([T, I], (out) => {
      for (let e = 0; e + 1 < starts.length; e++)
        for (let t = starts[e]!; t < starts[e + 1]!; t++)
          for (let i = 0; i < I; i++) {
            let sum = 0;
            for (let o = 0; o < O; o++) sum += numbers(dy)[t * O + o]! * numbers(w)[(e * O + o) * I + i]!;
            out[t * I + i] = sum;
          }
    });
  }

  linearWeight(dy: Tensor, x: Tensor, starts?: Int32Array): Tensor {
    const [T, O] = dy.shape as [number, number];
    const I = x.shape[1]!;
    const groups = starts ?? Int32Array.of(0, T);
    return this.#make(starts ? [starts.length - 1, O, I] : [O, I], (out) => {
      for (let e = 0; e + 1 < groups.length; e++)
        for (let o = 0; o < O; o++)
          for (let i = 0; i < I; i++) {
            let sum = 0;
            for (let t = groups[e]!; t < groups[e + 1]!; t++) sum += numbers(dy)[t * O + o]! * numbers(x)[t * I + i]!;
            out[(e * O + o) * I + i] = sum;
          }
    });
  }

  // With n = x·s, s = rsqrt(mean(x²) + eps) and g = dy·w: dx = s·(g − n·mean(g·n)), dw = Σ dy·n.
  rmsNormBackward(x: Tensor, w: Tensor | null, eps: number, dy: Tensor): { x: Tensor; w?: Tensor } {
    const [a, d] = [numbers(x), numbers(dy)];
    const n = x.shape.at(-1)!;
    const dw = new Float64Array(n);
    const dx = this.#make(x.shape, (out) => {
      for (let at = 0; at < a.length; at += n) {
        const s = 1 / Math.sqrt(dot(a, at, a, at, n) / n + eps);
        const g = Float64Array.from({ length: n }, (_, i) => d[at + i]! * (w ? numbers(w)[i]! : 1));
        const mean = (dot(g, 0, a, at, n) * s) / n;
        for (let i = 0; i < n; i++) {
          out[at + i] = s * (g[i]! - a[at + i]! * s * mean);
          dw[i]! += d[at + i]! * a[at + i]! * s;
        }
      }
    });
    return w ? { x: dx, w: this.#make([n], (out) => out.set(dw)) } : { x: dx };
  }

  // With n = (x − mean)·s, s = rsqrt(variance + eps) and g = dy·w: dx = s·(g − mean(g) − n·mean(g·n)), dw = Σ dy·n, db = Σ dy.
  layerNormBackward(x: Tensor, w: Tensor, eps: number, dy: Tensor): { x: Tensor; w: Tensor; b: Tensor } {
    const [a, d] = [numbers(x), numbers(dy)];
    const n = x.shape.at(-1)!;
    const [dw, db] = [new Float64Array(n), new Float64Array(n)];
    const dx = this.#make(x.shape, (out) => {
      for (let at = 0; at < a.length; at += n) {
        const row = Float64Array.from(a.subarray(at, at + n));
        const mean = row.reduce((sum, v) => sum + v / n, 0);
        const s = 1 / Math.sqrt(row.reduce((sum, v) => sum + (v - mean) ** 2 / n, 0) + eps);
        const normal = row.map((v) => (v - mean) * s);
        const g = row.map((_, i) => d[at + i]! * numbers(w)[i]!);
        const [meanG, meanGn] = [g.reduce((sum, v) => sum + v / n, 0), dot(g, 0, normal, 0, n) / n];
        for (let i = 0; i < n; i++) {
          out[at + i] = s * (g[i]! - meanG - normal[i]! * meanGn);
          dw[i]! += d[at + i]! * normal[i]!;
          db[i]! += d[at + i]!;
        }
      }
    });
    return { x: dx, w: this.#make([n], (out) => out.set(dw)), b: this.#make([n], (out) => out.set(db)) };
  }

  // silu(g) = g·σ(g), silu′(g) = σ(g)·(1 + g·(1 − σ(g)))
  swigluBackward(gate: Tensor, up: Tensor, dy: Tensor): { gate: Tensor; up: Tensor } {
    const [g, u, d] = [numbers(gate), numbers(up), numbers(dy)];
    return {
      gate: this.#make(gate.shape, (out) => {
        for (const [i, v] of g.entries()) out[i] = d[i]! * u[i]! * sigmoid(v) * (1 + v * (1 - sigmoid(v)));
      }),
      up: this.#make(up.shape, (out) => {
        for (const [i, v] of g.entries()) out[i] = d[i]! * v * sigmoid(v);
      }),
    };
  }

  // gelu′(x) = Φ(x) + x·φ(x)
  geluBackward(x: Tensor, dy: Tensor): Tensor {
    return this.#make(x.shape, (out) => {
      for (const [i, v] of numbers(x).entries()) {
        const density = Math.exp((-v * v) / 2) / Math.sqrt(2 * Math.PI);
        out[i] = numbers(dy)[i]! * ((1 + erf(v / Math.SQRT2)) / 2 + v * density);
      }
    });
  }

  attend(q: Tensor, k: Tensor, v: Tensor, span: Span): { y: Tensor; lse: Tensor } {
    const [T, H] = q.shape as [number, number];
    const lse = this.#make([T, H], (out) => {
      for (const { row, h, scores } of queries(q, k, span)) out[row * H + h] = logSumExp(scores);
    });
    return { y: this.#backend.attend(q, k, v, span), lse };
  }

  // With p = exp(q·k/√d − lse) and D = Σ dy·y of a query: dv = p·dy, ds = p·(dy·v − D)/√d, dq = Σ ds·k, dk = ds·q.
  attendBackward(q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, dy: Tensor, span: Span) {
    const [, H, d] = q.shape as [number, number, number];
    const [qs, ks, vs, dys] = [numbers(q), numbers(k), numbers(v), numbers(dy)];
    const [dq, dk, dv] = [q, k, v].map((x) => new Float64Array(elementCount(x.shape))) as [Numbers, Numbers, Numbers];
    for (const { row, h, keys, scores } of queries(q, k, span)) {
      const at = (row * H + h) * d;
      const D = dot(dys, at, numbers(y), at, d);
      for (const [n, key] of keys.entries()) {
        const p = Math.exp(scores[n]! - numbers(lse)[row * H + h]!);
        const ds = (p * (dot(dys, at, vs, key, d) - D)) / Math.sqrt(d);
        for (let i = 0; i < d; i++) {
          dq[at + i]! += ds * ks[key + i]!;
          dk[key + i]! += ds * qs[at + i]!;
          dv[key + i]! += p * dys[at + i]!;
        }
      }
    }
    const of = (x: Tensor, dx: Numbers) => this.#make(x.shape, (out) => out.set(dx));
    return { q: of(q, dq), k: of(k, dk), v: of(v, dv) };
  }

  scores(logits: Tensor, { topK, experts }: Pick<Routes, "topK" | "experts">): Tensor {
    const [T, E] = logits.shape as [number, number];
    return this.#make([T, topK], (out) => {
      for (const [i, e] of experts.entries()) out[i] = sigmoid(numbers(logits)[Math.floor(i / topK) * E + e]!);
    });
  }

  scoresBackward(logits: Tensor, { topK, experts }: Pick<Routes, "topK" | "experts">, dy: Tensor): Tensor {
    const E = logits.shape[1]!;
    return this.#make(logits.shape, (out) => {
      for (const [i, e] of experts.entries()) {
        const at = Math.floor(i / topK) * E + e;
        const s = sigmoid(numbers(logits)[at]!);
        out[at] = numbers(dy)[i]! * s * (1 - s);
      }
    });
  }

  crossEntropyBackward(logits: Tensor, targets: Int32Array, dy: Tensor): Tensor {
    const V = logits.shape[1]!;
    const counted = targets.filter((target) => target >= 0).length;
    return this.#make(logits.shape, (out) => {
      for (const [t, target] of targets.entries()) {
        if (target < 0) continue;
        const p = softmax([...numbers(logits).subarray(t * V, (t + 1) * V)]);
        for (let v = 0; v < V; v++) out[t * V + v] = ((p[v]! - (v === target ? 1 : 0)) * numbers(dy)[0]!) / counted;
      }
    });
  }

  routerLoss(logits: Tensor, { shares, balance, z }: RouterLoss): Tensor {
    const [T, E] = logits.shape as [number, number];
    let sum = 0;
    for (let t = 0; t < T; t++) {
      const row = [...numbers(logits).subarray(t * E, (t + 1) * E)];
      sum += balance * E * dot(Float64Array.from(softmax(row)), 0, shares, 0, E) + z * logSumExp(row) ** 2;
    }
    return this.#make([], (out) => {
      out[0] = sum / T;
    });
  }

  // By a row's logits: balance·E·p·(shares − Σ shares·p) + 2·z·lse·p, over T.
  routerLossBackward(logits: Tensor, { shares, balance, z }: RouterLoss, dy: Tensor): Tensor {
    const [T, E] = logits.shape as [number, number];
    return this.#make(logits.shape, (out) => {
      for (let t = 0; t < T; t++) {
        const row = [...numbers(logits).subarray(t * E, (t + 1) * E)];
        const p = softmax(row);
        const mean = dot(Float64Array.from(p), 0, shares, 0, E);
        for (let e = 0; e < E; e++) {
          const slope = balance * E * (shares[e]! - mean) + 2 * z * logSumExp(row);
          out[t * E + e] = (numbers(dy)[0]! * p[e]! * slope) / T;
        }
      }
    });
  }

  scatterRows(x: Tensor, at: Int32Array, n: number): Tensor {
    const shape = [n, ...x.shape.slice(1)];
    const width = elementCount(x.shape.slice(1));
    const sums = new Float64Array(elementCount(shape));
    for (const [i, row] of at.entries())
      for (let j = 0; j < width; j++) sums[row * width + j]! += numbers(x)[i * width + j]!;
    return this.#make(shape, (out) => out.set(sums));
  }

  sumTo(x: Tensor, shape: Shape): Tensor {
    const sums = new Float64Array(elementCount(shape));
    for (const [i, v] of numbers(x).entries()) sums[broadcastIndex(x.shape, shape, i)]! += v;
    return this.#make(shape, (out) => out.set(sums));
  }

  free(): void {} // the garbage collector does it
}

/** Every row's heads: where the keys that they see begin, and the scores. */
function* queries(q: Tensor, k: Tensor, span: Span) {
  const [, H, d] = q.shape as [number, number, number];
  const K = k.shape[1]!;
  for (const segment of span.segments)
    for (let t = 0; t < segment.length; t++)
      for (let h = 0; h < H; h++) {
        const row = segment.row + t;
        const [first, last] = seenRows(segment, t, span);
        const head = Math.floor((h * K) / H);
        const keys = Array.from({ length: last - first + 1 }, (_, i) => ((first + i) * K + head) * d);
        const scores = keys.map((key) => dot(numbers(q), (row * H + h) * d, numbers(k), key, d) / Math.sqrt(d));
        yield { row, h, keys, scores };
      }
}

function logSumExp(row: readonly number[]): number {
  const top = row.reduce((a, b) => Math.max(a, b), -Infinity);
  return top + Math.log(row.reduce((sum, v) => sum + Math.exp(v - top), 0));
}
