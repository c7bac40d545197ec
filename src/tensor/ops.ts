// The operations as free functions: shapes are checked here, once, then the tensor's backend does the work.
//
// T tokens in the step · D dim · H query heads · K key/value heads · d head dim · E experts · F expert width · V vocabulary

import type { Backend, Expert, ExpertBank, Routes, Span } from "./backend.ts";
import type { Shape, Tensor } from "./tensor.ts";
import { elementCount } from "./tensor.ts";

const show = (t: Tensor) => `[${t.shape.join(", ")}]`;

function expect(ok: boolean, sentence: () => string): void {
  if (!ok) throw new RangeError(sentence());
}

function sameBackend(operation: string, a: Tensor, ...others: readonly (Tensor | null | undefined)[]): Backend {
  for (const b of others) {
    expect(
      !b || b.backend === a.backend,
      () => `${operation}: tensors of two backends (${a.backend.name}, ${b?.backend.name})`,
    );
  }
  return a.backend;
}

const last = (t: Tensor) => t.shape[t.shape.length - 1] ?? 0;

export function embed(table: Tensor, ids: Int32Array): Tensor {
  expect(table.shape.length === 2, () => `embed: table is ${show(table)}; expected [V, D]`);
  const vocabulary = table.shape[0]!;
  for (const id of ids) {
    expect(id >= 0 && id < vocabulary, () => `embed: token ${id} is outside the vocabulary of ${vocabulary}`);
  }
  return table.backend.embed(table, ids);
}

export function linear(x: Tensor, w: Tensor, b?: Tensor): Tensor {
  expectProduct(x, w);
  expect(
    !b || (b.shape.length === 1 && b.shape[0] === w.shape[0]),
    () => `linear: w is ${show(w)} and b is ${show(b!)}; expected [${w.shape[0]}]`,
  );
  return sameBackend("linear", x, w, b).linear(x, w, b);
}

/** `linear` whose float factors no backend rounds to less: for what a choice hangs on. */
export function exactLinear(x: Tensor, w: Tensor): Tensor {
  expectProduct(x, w);
  return sameBackend("exactLinear", x, w).linear(x, w, undefined, true);
}

function expectProduct(x: Tensor, w: Tensor): void {
  expect(
    x.shape.length === 2 && w.shape.length === 2,
    () => `linear: x is ${show(x)} and w is ${show(w)}; expected two axes each`,
  );
  expect(
    last(x) === last(w),
    () => `linear: x is ${show(x)} and w is ${show(w)}; expected their last dimensions to be equal`,
  );
}

export function qkv(x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor): [q: Tensor, k: Tensor, v: Tensor] {
  for (const w of [wq, wk, wv])
    expect(
      x.shape.length === 2 && w.shape.length === 2 && last(x) === last(w),
      () => `qkv: x is ${show(x)} and a weight ${show(w)}; expected [T, D] and [O, D]`,
    );
  return sameBackend("qkv", x, wq, wk, wv).qkv(x, wq, wk, wv);
}

export function add(a: Tensor, b: Tensor): Tensor {
  expect(a.shape.join() === b.shape.join(), () => `add: a is ${show(a)} and b is ${show(b)}; expected equal shapes`);
  return sameBackend("add", a, b).add(a, b);
}

export function mul(a: Tensor, b: Tensor): Tensor {
  const fits = a.shape.length === b.shape.length && a.shape.every((n, i) => b.shape[i] === n || b.shape[i] === 1);
  expect(fits, () => `mul: a is ${show(a)} and b is ${show(b)}; expected b's dimensions to equal a's or 1`);
  return sameBackend("mul", a, b).mul(a, b);
}

export function rmsNorm(x: Tensor, w: Tensor | null, eps: number): Tensor {
  expect(
    !w || (w.shape.length === 1 && w.shape[0] === last(x)),
    () => `rmsNorm: x is ${show(x)} and w is ${show(w!)}; expected [${last(x)}]`,
  );
  return sameBackend("rmsNorm", x, w).rmsNorm(x, w, eps);
}

export function layerNorm(x: Tensor, w: Tensor, b: Tensor, eps: number): Tensor {
  for (const t of [w, b]) {
    expect(
      t.shape.length === 1 && t.shape[0] === last(x),
      () => `layerNorm: x is ${show(x)}, a weight ${show(t)}; expected [${last(x)}]`,
    );
  }
  return sameBackend("layerNorm", x, w, b).layerNorm(x, w, b, eps);
}

export function swiglu(gate: Tensor, up: Tensor): Tensor {
  expect(
    gate.shape.join() === up.shape.join(),
    () => `swiglu: gate is ${show(gate)} and up is ${show(up)}; expected equal shapes`,
  );
  return sameBackend("swiglu", gate, up).swiglu(gate, up);
}

export function gelu(x: Tensor): Tensor {
  return x.backend.gelu(x);
}

export function feedForward(x: Tensor, gate: Tensor, up: Tensor, down: Tensor): Tensor {
  checkFeedForward(x, gate, up, down);
  return sameBackend("feedForward", x, gate, up, down).feedForward(x, gate, up, down);
}

function checkFeedForward(x: Tensor, gate: Tensor, up: Tensor, down: Tensor): void {
  const [, D] = x.shape;
  const [F] = gate.shape;
  const fits =
    x.shape.length === 2 &&
    gate.shape.join() === [F, D].join() &&
    up.shape.join() === gate.shape.join() &&
    down.shape.join() === [D, F].join();
  expect(
    fits,
    () =>
      `feedForward: x is ${show(x)}, gate ${show(gate)}, up ${show(up)}, down ${show(down)}; expected [T, D], twice [F, D] and [D, F]`,
  );
}

export function rope(x: Tensor, rotations: Tensor): Tensor {
  const [T, , d] = x.shape;
  const fits = x.shape.length === 3 && d! % 2 === 0 && rotations.shape.join() === [T, d! / 2, 2].join();
  expect(
    fits,
    () => `rope: x is ${show(x)} and rotations are ${show(rotations)}; expected [T, H, d], d even, and [T, d/2, 2]`,
  );
  return sameBackend("rope", x, rotations).rope(x, rotations);
}

export function attend(q: Tensor, k: Tensor, v: Tensor, span: Span): Tensor {
  const [T, H, d] = q.shape;
  const K = k.shape[1] ?? 0;
  const fits =
    q.shape.length === 3 &&
    k.shape.join() === [T, K, d].join() &&
    v.shape.join() === k.shape.join() &&
    H! > 0 &&
    K > 0 &&
    H! % K === 0 &&
    d! > 0;
  expect(
    fits,
    () =>
      `attend: q is ${show(q)}, k ${show(k)}, v ${show(v)}; expected [T, H, d] and twice [T, K, d], none of H, K, d 0, K a divisor of H`,
  );
  for (const { row, length, position } of span.segments) {
    expect(
      row >= 0 && length > 0 && row + length <= T!,
      () => `attend: a segment covers rows ${row} to ${row + length - 1} of ${T}`,
    );
    const { cache, chunk } = span;
    expect(
      !cache || !chunk || (position % chunk) + length <= chunk,
      () => `attend: a cached segment at position ${position} of ${length} tokens crosses a chunk of ${chunk}`,
    );
  }
  return sameBackend("attend", q, k, v).attend(q, k, v, span);
}

export function route(logits: Tensor, topK: number): Routes {
  const experts = logits.shape[1] ?? 0;
  expect(
    logits.shape.length === 2 && topK >= 1 && topK <= experts,
    () => `route: logits are ${show(logits)} and topK is ${topK}; expected 1 to ${experts}`,
  );
  return logits.backend.route(logits, topK);
}

export function experts(x: Tensor, bank: ExpertBank, routes: Routes, shared?: Expert): Promise<Tensor> {
  const [T, D] = x.shape;
  const [E, F] = bank.gate.shape;
  const fits =
    x.shape.length === 2 &&
    bank.gate.shape.join() === [E, F, D].join() &&
    bank.up.shape.join() === bank.gate.shape.join() &&
    bank.down.shape.join() === [E, D, F].join() &&
    [D, E, F].every((n) => n! > 0);
  expect(
    fits,
    () =>
      `experts: x is ${show(x)}, gate ${show(bank.gate)}, up ${show(bank.up)}, down ${show(bank.down)}; expected [T, D], twice [E, F, D] and [E, D, F], none of D, E, F 0`,
  );
  expect(
    routes.topK >= 1 && routes.experts.length === T! * routes.topK,
    () =>
      `experts: ${routes.experts.length} routes for ${T} rows of top ${routes.topK}; expected topK of them a row, at least 1`,
  );
  if (shared) checkFeedForward(x, shared.gate, shared.up, shared.down);
  const { gate, up, down } = bank;
  return sameBackend("experts", x, gate, up, down, routes.scores, shared?.gate, shared?.up, shared?.down).experts(
    ...([x, bank, routes, shared] as const),
  );
}

export function reshape(x: Tensor, shape: Shape): Tensor {
  expect(
    elementCount(x.shape) === elementCount(shape),
    () => `reshape: ${show(x)} has not as many elements as [${shape.join(", ")}]`,
  );
  return x.backend.reshape(x, shape);
}

export function permute(x: Tensor, order: readonly number[]): Tensor {
  const fits = [...order].sort((a, b) => a - b).join() === x.shape.map((_, i) => i).join();
  expect(fits, () => `permute: order [${order.join(", ")}] for ${show(x)}`);
  return x.backend.permute(x, order);
}

function checkRows(operation: string, x: Tensor, at: Int32Array): void {
  const n = x.shape[0] ?? 0;
  for (const row of at) expect(row >= 0 && row < n, () => `${operation}: row ${row} of ${show(x)}`);
}

export function rows(x: Tensor, at: Int32Array): Tensor {
  checkRows("rows", x, at);
  return x.backend.rows(x, at);
}

export function splice(x: Tensor, replacement: Tensor, at: Int32Array): Tensor {
  checkRows("splice", x, at);
  const fits = replacement.shape.join() === [at.length, ...x.shape.slice(1)].join();
  expect(
    fits,
    () => `splice: x is ${show(x)} and the rows are ${show(replacement)}; expected ${at.length} rows of the same width`,
  );
  return sameBackend("splice", x, replacement).splice(x, replacement, at);
}

export function crossEntropy(logits: Tensor, targets: Int32Array): Tensor {
  const [T, V] = logits.shape;
  expect(
    logits.shape.length === 2 && targets.length === T && V! > 0,
    () =>
      `crossEntropy: logits are ${show(logits)} for ${targets.length} targets; expected a row of at least 1 for each`,
  );
  for (const target of targets)
    expect(target < V!, () => `crossEntropy: target ${target} is outside the vocabulary of ${V}`);
  return logits.backend.crossEntropy(logits, targets);
}
