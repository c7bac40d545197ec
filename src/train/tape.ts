// The tape: a backend that computes on another one and records how to go back, so that training runs the same model code
// as inference. Here are the operations with their ways back; how a pass is kept and walked is in graph.ts.

import type { Backend, Expert, ExpertBank, KVPool, LoadOptions, Routes, Span } from "../tensor/backend.ts";
import type { Backward, RouterLoss } from "../tensor/backward.ts";
import { elementCount, type Shape, type Tensor, type TensorView } from "../tensor/tensor.ts";
import { Graph, type Node, type Operation, type Value, value } from "./graph.ts";

export interface TapeOptions {
  /** Keeps only what scopes (the model's layers) return, and computes what is inside them again on the way back. */
  readonly recompute?: boolean;
  readonly router?: Router;
}

/** Takes part in every `route` of a forward pass, in the order of the layers: see balance.ts. */
export interface Router {
  /** `[E]`: added to the logits for the choice alone, not for the score. */
  bias(): Float64Array | undefined;
  /** `lossOf` records a scalar of the logits, to be added to the step's loss. */
  routed(logits: Tensor, routes: Routes, lossOf: (logits: Tensor, loss: RouterLoss) => Tensor): void;
}

/** `scale · b·a` beside a matrix `[O, I]`: a `[r, I]`, b `[O, r]`; stacks `[E, …]` beside one of experts. */
export interface LowRank<W = Tensor> {
  readonly a: W;
  readonly b: W;
  readonly scale: number;
}

/** Wraps a backend that has a way back. One forward pass, then `gradients`, at a time. */
export class Tape implements Backend {
  readonly name: string;
  readonly #inner: Backend;
  readonly #backward: Backward;
  readonly #graph: Graph;
  readonly #router: Router | undefined;
  readonly #leaves = new WeakMap<Tensor, Tensor>(); // watched
  readonly #constants = new WeakMap<Tensor, Tensor>();
  readonly #changes = new WeakMap<Node, LowRank>(); // of frozen weights

  constructor(backend: Backend, { recompute = false, router }: TapeOptions = {}) {
    if (!backend.backward)
      throw new RangeError(`the tape's backend "${backend.name}" knows no way back; train on native or reference`);
    this.name = `tape of ${backend.name}`;
    this.#inner = backend;
    this.#backward = backend.backward;
    this.#graph = new Graph(backend, backend.backward, recompute);
    this.#router = router;
  }

  // --- what training does with it ---

  /** The tree with the backend's tensors as the tape's: what `gradients` can differentiate by. A tensor is watched once. */
  watch<P>(tree: P): P {
    return mapTensors(tree, (x) => this.#leaf(x, this.#leaves, true));
  }

  /** The same for tensors that get no gradient: frozen weights, a teacher's results. */
  constant<P>(tree: P): P {
    return mapTensors(tree, (x) => this.#leaf(x, this.#constants, false));
  }

  /**
   * A frozen weight with a low-rank change beside it, whose a and b are watched (train/lora.ts). Products by it have both;
   * nothing of the weight's size is made, there or on the way back.
   */
  changed(weight: Tensor, { a, b, scale }: LowRank): Tensor {
    const leaf = this.#graph.leaf(weight, false);
    this.#changes.set(leaf, { a: this.watch(a), b: this.watch(b), scale });
    return this.#tensor(leaf);
  }

  /** A scalar that `compute` makes of x's value on the wrapped backend, with its gradient by x, which the tape then owns. */
  async scalar(x: Tensor, compute: (value: Tensor) => Promise<{ value: number; gradient: Tensor }>): Promise<Tensor> {
    const a = node(x);
    const { value: number, gradient } = await this.#inner.scope(() => compute(this.#graph.value(a)));
    const scalar = this.#graph.record({
      inputs: [a],
      run: () => this.#inner.from(Float64Array.of(number), []),
      back: ({ tensor: dy }) => {
        const ones = gradient.shape.map(() => 1);
        this.#graph.offer(a, () => this.#inner.mul(gradient, this.#inner.reshape(dy, ones)));
      },
    });
    this.#graph.keepAside(scalar, gradient);
    return this.#tensor(scalar);
  }

  /**
   * The gradients of a scalar by what `watched` holds, a tree of the same form, in the wrapped backend's tensors, whose
   * memory is the caller's; zeros where the loss does not depend. A tensor that stands twice has one gradient, twice.
   * Everything recorded is gone afterwards, but for the loss.
   */
  gradients<P>(loss: Tensor, watched: P): P {
    const end = node(loss);
    if (loss.backend !== this || elementCount(loss.shape) !== 1)
      throw new RangeError(
        `gradients: the loss is [${loss.shape.join(", ")}] of ${loss.backend.name}; expected a scalar of this tape`,
      );
    if (end.passed) throw new RangeError("gradients: the loss was walked back before; compute it anew");
    try {
      this.#graph.walkBack(end);
      const results = new Map<Tensor, Tensor>();
      return mapTensors(watched, (x) => {
        const known = results.get(x) ?? this.#gradientBy(x);
        results.set(x, known);
        return known;
      });
    } finally {
      this.clear();
    }
  }

  /** Forgets what was recorded since the last `gradients`. What is watched stays watched. */
  clear(): void {
    this.#graph.clear();
  }

  #gradientBy(x: Tensor): Tensor {
    const leaf = node(x);
    if (x.backend !== this || leaf.run || !leaf.differentiable)
      throw new RangeError(`gradients: a tensor [${x.shape.join(", ")}] is not watched by this tape`);
    return this.#graph.takeGradient(leaf);
  }

  #leaf(x: Tensor, known: WeakMap<Tensor, Tensor>, differentiable: boolean): Tensor {
    if (x.backend === this) return x;
    if (x.backend !== this.#inner)
      throw new RangeError(`${this.name}: a tensor of ${x.backend.name}; expected one of ${this.#inner.name}`);
    const leaf = known.get(x) ?? this.#tensor(this.#graph.leaf(x, differentiable));
    known.set(x, leaf);
    return leaf;
  }

  #tensor(node: Node): Tensor {
    const { shape, dtype } = node.value!.tensor; // only made while there is one
    return { shape, dtype, backend: this, data: node };
  }

  #record(operation: Operation): Tensor {
    return this.#tensor(this.#graph.record(operation));
  }

  // --- the backend ---

  from(data: Float32Array | Float64Array | Int32Array, shape: Shape): Tensor {
    return this.#tensor(this.#graph.constant(this.#inner.from(data, shape)));
  }

  async load(views: readonly TensorView[], options?: LoadOptions): Promise<Tensor[]> {
    return this.constant(await this.#inner.load(views, options));
  }

  kvPool(): KVPool {
    throw new RangeError("a tape has no KV cache: training computes whole sequences");
  }

  async scope<T>(body: () => Promise<T>, spent?: Tensor): Promise<T> {
    return this.#graph.scope(body, nodesIn, spent && node(spent));
  }

  async read(x: Tensor, into?: Float32Array): Promise<Float32Array | Float64Array> {
    return this.#inner.read(this.#graph.value(node(x)), into);
  }

  close(): void {
    this.clear();
  }

  // --- the operations and their ways back ---

  embed(table: Tensor, ids: Int32Array): Tensor {
    return this.rows(table, ids);
  }

  linear(x: Tensor, w: Tensor, b?: Tensor, exact = false): Tensor {
    const [a, m, bias] = [node(x), node(w), b && node(b)];
    const y = this.#record({
      inputs: bias ? [a, m, bias] : [a, m],
      run: (x, w, b) => this.#inner.linear(x, w, b, exact),
      needs: [m.differentiable && a, a.differentiable && m],
      back: ({ tensor: dy }) => {
        this.#graph.offer(a, () => this.#backward.linearInput(dy, this.#graph.value(m), undefined, exact));
        this.#graph.offer(m, () => this.#backward.linearWeight(dy, this.#graph.value(a), undefined, exact));
        this.#graph.offer(bias, () => {
          const [, O] = dy.shape as [number, number];
          return this.#inner.reshape(this.#backward.sumTo(dy, [1, O]), [O]);
        });
      },
    });
    const change = this.#changes.get(m);
    return change ? this.#beside(y, change, x, (x, w) => this.linear(x, w)) : y;
  }

  /** `y + scale · b·(a·x)` */
  #beside(y: Tensor, { a, b, scale }: LowRank, x: Tensor, times: (x: Tensor, w: Tensor) => Tensor): Tensor {
    const narrow = this.mul(times(x, a), this.from(Float64Array.of(scale), [1, 1])); // [T, r]
    return this.add(y, times(narrow, b));
  }

  add(a: Tensor, b: Tensor): Tensor {
    const [p, q] = [node(a), node(b)];
    return this.#record({
      inputs: [p, q],
      run: (x, y) => this.#inner.add(x, y),
      back: (dy) => {
        this.#graph.give(p, dy);
        this.#graph.give(q, dy);
      },
    });
  }

  mul(a: Tensor, b: Tensor): Tensor {
    const [p, q] = [node(a), node(b)];
    return this.#record({
      inputs: [p, q],
      run: (x, y) => this.#inner.mul(x, y),
      needs: [p.differentiable && q, q.differentiable && p],
      back: ({ tensor: dy }) => {
        this.#graph.offer(p, () => this.#inner.mul(dy, this.#graph.value(q)));
        this.#graph.offer(q, () => {
          const product = this.#inner.mul(dy, this.#graph.value(p));
          if (product.shape.join() === b.shape.join()) return product;
          const sums = this.#backward.sumTo(product, b.shape);
          this.#backward.free(product);
          return sums;
        });
      },
    });
  }

  rmsNorm(x: Tensor, w: Tensor | null, eps: number): Tensor {
    const [a, weight] = [node(x), w && node(w)];
    return this.#record({
      inputs: weight ? [a, weight] : [a],
      run: (x, w?: Tensor) => this.#inner.rmsNorm(x, w ?? null, eps),
      needs: [a, weight ?? false],
      back: ({ tensor: dy }) => {
        const d = this.#backward.rmsNormBackward(this.#graph.value(a), weight && this.#graph.value(weight), eps, dy);
        this.#graph.give(a, value(d.x));
        if (weight && d.w) this.#graph.give(weight, value(d.w));
      },
    });
  }

  layerNorm(x: Tensor, w: Tensor, b: Tensor, eps: number): Tensor {
    const [a, weight, bias] = [node(x), node(w), node(b)];
    return this.#record({
      inputs: [a, weight, bias],
      run: (x, w, b) => this.#inner.layerNorm(x, w, b, eps),
      needs: [a, weight],
      back: ({ tensor: dy }) => {
        const d = this.#backward.layerNormBackward(this.#graph.value(a), this.#graph.value(weight), eps, dy);
        this.#graph.give(a, value(d.x));
        this.#graph.give(weight, value(d.w));
        this.#graph.give(bias, value(d.b));
      },
    });
  }

  swiglu(gate: Tensor, up: Tensor): Tensor {
    const [g, u] = [node(gate), node(up)];
    return this.#record({
      inputs: [g, u],
      run: (gate, up) => this.#inner.swiglu(gate, up),
      needs: [g, u],
      back: ({ tensor: dy }) => {
        const d = this.#backward.swigluBackward(this.#graph.value(g), this.#graph.value(u), dy);
        this.#graph.give(g, value(d.gate));
        this.#graph.give(u, value(d.up));
      },
    });
  }

  gelu(x: Tensor): Tensor {
    const a = node(x);
    return this.#record({
      inputs: [a],
      run: (x) => this.#inner.gelu(x),
      needs: [a],
      back: ({ tensor: dy }) => this.#graph.offer(a, () => this.#backward.geluBackward(this.#graph.value(a), dy)),
    });
  }

  qkv(x: Tensor, ...weights: [wq: Tensor, wk: Tensor, wv: Tensor]): [Tensor, Tensor, Tensor] {
    return weights.map((w) => this.linear(x, w)) as [Tensor, Tensor, Tensor];
  }

  feedForward(x: Tensor, gate: Tensor, up: Tensor, down: Tensor): Tensor {
    return this.linear(this.swiglu(this.linear(x, gate), this.linear(x, up)), down);
  }

  rope(x: Tensor, rotations: Tensor): Tensor {
    const [a, turns] = [node(x), node(rotations)];
    if (turns.differentiable) throw new RangeError("rope: the rotations are watched; expected a constant");
    return this.#record({
      inputs: [a, turns],
      run: (x, rotations) => this.#inner.rope(x, rotations),
      needs: [turns],
      back: ({ tensor: dy }) =>
        this.#graph.offer(a, () => {
          const sign = this.#inner.from(Float32Array.of(1, -1), [1, 1, 2]); // the transpose of a rotation turns back
          const turnsBack = this.#inner.mul(this.#graph.value(turns), sign);
          const dx = this.#inner.rope(dy, turnsBack);
          this.#backward.free(turnsBack);
          this.#backward.free(sign);
          return dx;
        }),
    });
  }

  attend(q: Tensor, k: Tensor, v: Tensor, span: Span): Tensor {
    const [qs, ks, vs] = [node(q), node(k), node(v)];
    if (span.cache) throw new RangeError("attend: a tape has no KV cache: training computes whole sequences");
    return this.#record({
      inputs: [qs, ks, vs],
      run: (q, k, v) => {
        const { y, lse } = this.#backward.attend(q, k, v, span);
        return { tensor: y, aside: lse };
      },
      needs: [qs, ks, vs],
      needsResult: true,
      back: ({ tensor: dy }, node) => {
        const y = this.#graph.value(node); // and with it what is aside
        const lse = node.aside!.tensor;
        const d = this.#backward.attendBackward(
          this.#graph.value(qs),
          this.#graph.value(ks),
          this.#graph.value(vs),
          y,
          lse,
          dy,
          span,
        );
        this.#graph.give(qs, value(d.q));
        this.#graph.give(ks, value(d.k));
        this.#graph.give(vs, value(d.v));
      },
    });
  }

  route(logits: Tensor, topK: number): Routes {
    const a = node(logits);
    const experts = this.#choose(this.#graph.value(a), topK);
    const routes = { topK, experts, scores: this.#scores(a, { topK, experts }) };
    this.#router?.routed(logits, routes, (x, loss) => this.#routerLoss(node(x), loss));
    return routes;
  }

  #choose(logits: Tensor, topK: number): Int32Array {
    const made: Tensor[] = [];
    const keep = (x: Tensor) => made[made.push(x) - 1]!;
    const bias = this.#router?.bias();
    let biased = logits;
    if (bias) {
      const row = keep(this.#inner.from(bias, [1, bias.length]));
      const everywhere = keep(this.#inner.rows(row, new Int32Array(logits.shape[0]!)));
      biased = keep(this.#inner.add(logits, everywhere));
    }
    const { experts, scores } = this.#inner.route(biased, topK);
    for (const x of [...made, scores]) this.#backward.free(x); // the scores are a node's, which can compute them again
    return experts;
  }

  #scores(logits: Node, choice: Pick<Routes, "topK" | "experts">): Tensor {
    return this.#record({
      inputs: [logits],
      run: (logits) => this.#backward.scores(logits, choice),
      needs: [logits],
      back: ({ tensor: dy }) =>
        this.#graph.offer(logits, () => this.#backward.scoresBackward(this.#graph.value(logits), choice, dy)),
    });
  }

  #routerLoss(logits: Node, loss: RouterLoss): Tensor {
    const scalar = this.#record({
      inputs: [logits],
      run: (logits) => this.#backward.routerLoss(logits, loss),
      needs: [logits],
      back: ({ tensor: dy }) =>
        this.#graph.offer(logits, () => this.#backward.routerLossBackward(this.#graph.value(logits), loss, dy)),
    });
    node(scalar).returned = node(scalar).needed = true; // it leaves its layer beside the result
    return scalar;
  }

  /** In its parts, so that the way back finds what was in between: rows grouped by expert, no row left out. */
  async experts(x: Tensor, bank: ExpertBank, routes: Routes, shared?: Expert): Promise<Tensor> {
    if (shared)
      return this.add(this.feedForward(x, shared.gate, shared.up, shared.down), await this.experts(x, bank, routes));
    const { topK, experts, scores } = routes;
    const { order, places, starts } = groupByExpert(experts, bank.gate.shape[0]!);
    const chosen = this.rows(
      x,
      order.map((choice) => Math.floor(choice / topK)),
    ); // [T·topK, D]
    const input = this.mul(chosen, this.rows(this.reshape(scores, [experts.length, 1]), order));
    const hidden = this.swiglu(
      this.#groupedLinear(input, bank.gate, starts),
      this.#groupedLinear(input, bank.up, starts),
    ); // [T·topK, F]
    const y = this.#groupedLinear(hidden, bank.down, starts); // [T·topK, D]
    const choice = (k: number) =>
      this.rows(
        y,
        places.filter((_, i) => i % topK === k),
      );
    let sum = choice(0); // [T, D]
    for (let k = 1; k < topK; k++) sum = this.add(sum, choice(k));
    return sum;
  }

  #groupedLinear(x: Tensor, bank: Tensor, starts: Int32Array): Tensor {
    const [a, m] = [node(x), node(bank)];
    const y = this.#record({
      inputs: [a, m],
      run: (x, bank) => this.#backward.groupedLinear(x, bank, starts),
      needs: [m.differentiable && a, a.differentiable && m],
      back: ({ tensor: dy }) => {
        this.#graph.offer(a, () => this.#backward.linearInput(dy, this.#graph.value(m), starts));
        this.#graph.offer(m, () => this.#backward.linearWeight(dy, this.#graph.value(a), starts));
      },
    });
    const change = this.#changes.get(m);
    return change ? this.#beside(y, change, x, (x, w) => this.#groupedLinear(x, w, starts)) : y;
  }

  reshape(x: Tensor, shape: Shape): Tensor {
    const a = node(x);
    const reshaped = ({ tensor, buffer }: Value, to: Shape): Value => ({
      tensor: this.#inner.reshape(tensor, to),
      buffer,
    });
    return this.#record({
      inputs: [a],
      run: () => reshaped(a.value!, shape), // an operation's inputs are there when it runs
      back: (dy) => this.#graph.give(a, reshaped(dy, x.shape)),
    });
  }

  permute(x: Tensor, order: readonly number[]): Tensor {
    const a = node(x);
    return this.#record({
      inputs: [a],
      run: (x) => this.#inner.permute(x, order),
      back: ({ tensor: dy }) =>
        this.#graph.offer(a, () =>
          this.#inner.permute(
            dy,
            order.map((_, axis) => order.indexOf(axis)),
          ),
        ),
    });
  }

  rows(x: Tensor, at: Int32Array): Tensor {
    const a = node(x);
    return this.#record({
      inputs: [a],
      run: (x) => this.#inner.rows(x, at),
      back: ({ tensor: dy }) => this.#graph.offer(a, () => this.#backward.scatterRows(dy, at, x.shape[0]!)),
    });
  }

  splice(x: Tensor, replacement: Tensor, at: Int32Array): Tensor {
    const [a, fresh] = [node(x), node(replacement)];
    return this.#record({
      inputs: [a, fresh],
      run: (x, replacement) => this.#inner.splice(x, replacement, at),
      back: ({ tensor: dy }) => {
        const erased = (from: Tensor, rows: Int32Array) => {
          const zeros = this.#graph.zeros([rows.length, ...from.shape.slice(1)]);
          const rest = this.#inner.splice(from, zeros, rows);
          this.#backward.free(zeros);
          return rest;
        };
        this.#graph.offer(a, () => erased(dy, at));
        this.#graph.offer(fresh, () => {
          const mine = this.#inner.rows(dy, at);
          const overwritten = at.map((row, i) => (at.lastIndexOf(row) === i ? -1 : i)).filter((i) => i >= 0);
          if (overwritten.length === 0) return mine;
          const rest = erased(mine, overwritten);
          this.#backward.free(mine);
          return rest;
        });
      },
    });
  }

  crossEntropy(logits: Tensor, targets: Int32Array): Tensor {
    const a = node(logits);
    return this.#record({
      inputs: [a],
      run: (logits) => this.#inner.crossEntropy(logits, targets),
      needs: [a],
      back: ({ tensor: dy }) =>
        this.#graph.offer(a, () => this.#backward.crossEntropyBackward(this.#graph.value(a), targets, dy)),
    });
  }
}

function node(x: Tensor): Node {
  return x.data as Node; // the free functions dispatch on the tensor's backend: only the tape made it
}

/**
 * Choices in the order of their experts: the k-th there is choice `order[k]`, choice i stands at `places[i]`, those of
 * expert e begin at `starts[e]`.
 */
function groupByExpert(experts: Int32Array, nExperts: number) {
  const starts = new Int32Array(nExperts + 1);
  for (const e of experts) starts[e + 1]!++;
  for (let e = 0; e < nExperts; e++) starts[e + 1]! += starts[e]!;
  const next = starts.slice();
  const places = experts.map((e) => next[e]!++);
  const order = new Int32Array(experts.length);
  for (const [i, place] of places.entries()) order[place] = i;
  return { order, places, starts };
}

function isTensor(x: object): x is Tensor {
  return "backend" in x && "data" in x; // only tensors have both
}

/** The tree of arrays and records with each tensor replaced. */
function mapTensors<P>(tree: P, f: (x: Tensor) => Tensor): P {
  const map = (part: unknown): unknown => {
    if (typeof part !== "object" || part === null || ArrayBuffer.isView(part)) return part;
    if (isTensor(part)) return f(part);
    if (Array.isArray(part)) return part.map(map);
    return Object.fromEntries(Object.entries(part).map(([key, inner]) => [key, map(inner)]));
  };
  return map(tree) as P; // of the same form, by construction
}

function* nodesIn(result: unknown): Generator<Node> {
  if (typeof result !== "object" || result === null || ArrayBuffer.isView(result)) return;
  if (isTensor(result)) yield node(result);
  else for (const part of Array.isArray(result) ? result : Object.values(result)) yield* nodesIn(part);
}
