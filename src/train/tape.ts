// The tape: a backend that computes on another one and remembers how to go back, so that training runs the same model
// code as inference. Reverse-mode differentiation (Linnainmaa 1970); recomputation after Chen et al. 2016, arXiv:1604.06174.
//
// Every operation becomes a node: its value, how it is run, and how a gradient by it becomes gradients by its inputs.
// Values that the way back does not need die with the scope that made them; the others die as it passes them. All of
// them are counted, because the garbage collector does not see how large they are.

import type { Backend, Expert, ExpertBank, KVPool, LoadOptions, Routes, Span } from "../tensor/backend.ts";
import type { Backward, RouterLoss } from "../tensor/backward.ts";
import { elementCount, type Shape, type Tensor, type TensorView } from "../tensor/tensor.ts";

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

/** A tensor of the wrapped backend. */
interface Value {
  readonly tensor: Tensor;
  /** What the tensor shares with its reshapes: its memory is freed when nobody holds any of them. */
  readonly buffer: { holders: number };
}

interface Node {
  value: Value | undefined;
  /** Of the loss, by this node. */
  gradient: Value | undefined;
  /** Does anything watched go in? */
  readonly differentiable: boolean;
  /** The way back reads the value. */
  needed: boolean;
  /** A scope returned it. */
  returned: boolean;
  /** The way back has passed it. */
  passed: boolean;
  /** What the operation left for its way back, beside its result. */
  aside?: Value | undefined;
  /** Absent for what was put in. */
  readonly run?: () => Value;
  readonly back?: (dy: Value) => void;
  /** Of a frozen weight: what products by it have beside them. */
  readonly lowRank?: LowRank;
}

/** `scale · b·a` beside a matrix `[O, I]`: a `[r, I]`, b `[O, r]`; stacks `[E, …]` beside one of experts. */
export interface LowRank<W = Tensor> {
  readonly a: W;
  readonly b: W;
  readonly scale: number;
}

interface Operation {
  readonly inputs: readonly Node[];
  readonly run: (node: Node) => Tensor | Value;
  /** What `back` reads the values of; `false` for nothing. */
  readonly needs?: readonly (Node | false)[];
  /** `back` reads the result's own value. */
  readonly needsResult?: boolean;
  /** Gives gradients to the inputs. */
  readonly back: (dy: Value, node: Node) => void;
}

/** Wraps a backend that has a way back. One forward pass, then `gradients`, at a time. */
export class Tape implements Backend {
  readonly name: string;
  readonly #inner: Backend;
  readonly #backward: Backward;
  readonly #recompute: boolean;
  readonly #router: Router | undefined;
  readonly #leaves = new WeakMap<Tensor, Tensor>(); // watched
  readonly #constants = new WeakMap<Tensor, Tensor>();
  readonly #reached = new Set<Node>(); // leaves that have a gradient
  #nodes: Node[] = []; // in the order of the forward pass
  #scope: Node[] = [];

  constructor(backend: Backend, { recompute = false, router }: TapeOptions = {}) {
    if (!backend.backward)
      throw new RangeError(`the tape's backend "${backend.name}" knows no way back; train on native or reference`);
    this.name = `tape of ${backend.name}`;
    this.#inner = backend;
    this.#backward = backend.backward;
    this.#recompute = recompute;
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
    const lowRank = { a: this.watch(a), b: this.watch(b), scale };
    return this.#tensor({ ...this.#put(weight, Number.POSITIVE_INFINITY, false), lowRank });
  }

  /** A scalar that `compute` makes of x's value on the wrapped backend, with its gradient by x, which the tape then owns. */
  async scalar(x: Tensor, compute: (value: Tensor) => Promise<{ value: number; gradient: Tensor }>): Promise<Tensor> {
    const a = node(x);
    const { value: number, gradient } = await this.#inner.scope(() => compute(this.#value(a)));
    const scalar = this.#record({
      inputs: [a],
      run: () => this.#inner.from(Float64Array.of(number), []),
      back: ({ tensor: dy }) => {
        const ones = gradient.shape.map(() => 1);
        this.#offer(a, () => this.#inner.mul(gradient, this.#inner.reshape(dy, ones)));
      },
    });
    node(scalar).aside = held(value(gradient)); // freed when the way back has passed
    return scalar;
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
      if (end.differentiable) this.#give(end, value(this.#inner.from(Float64Array.of(1), loss.shape)));
      for (const node of this.#nodes.reverse()) {
        if (node.gradient) node.back?.(node.gradient);
        this.#pass(node, node === end);
      }
      const results = new Map<Tensor, Tensor>();
      return mapTensors(watched, (x) => {
        const known = results.get(x) ?? this.#result(x);
        results.set(x, known);
        return known;
      });
    } finally {
      this.clear();
    }
  }

  /** Forgets what was recorded since the last `gradients`. What is watched stays watched. */
  clear(): void {
    for (const node of this.#nodes) this.#pass(node, node.passed);
    for (const leaf of this.#reached) {
      this.#drop(leaf.gradient);
      leaf.gradient = undefined;
    }
    this.#reached.clear();
    this.#nodes = [];
    this.#scope = [];
  }

  // --- nodes ---

  #tensor(node: Node): Tensor {
    const { shape, dtype } = node.value!.tensor; // only made while there is one
    return { shape, dtype, backend: this, data: node };
  }

  #put(tensor: Tensor, holders: number, differentiable: boolean): Node {
    const flags = { needed: true, returned: false, passed: false };
    return { value: { tensor, buffer: { holders } }, gradient: undefined, differentiable, ...flags };
  }

  #leaf(x: Tensor, known: WeakMap<Tensor, Tensor>, differentiable: boolean): Tensor {
    if (x.backend === this) return x;
    if (x.backend !== this.#inner)
      throw new RangeError(`${this.name}: a tensor of ${x.backend.name}; expected one of ${this.#inner.name}`);
    const leaf = known.get(x) ?? this.#tensor(this.#put(x, Number.POSITIVE_INFINITY, differentiable));
    known.set(x, leaf);
    return leaf;
  }

  #constant(tensor: Tensor): Tensor {
    const node = this.#put(tensor, 1, false);
    this.#nodes.push(node);
    return this.#tensor(node);
  }

  #record({ inputs, run, needs = [], needsResult = false, back }: Operation): Tensor {
    const differentiable = inputs.some((input) => input.differentiable);
    const node: Node = {
      value: undefined,
      gradient: undefined,
      differentiable,
      needed: differentiable && needsResult,
      returned: false,
      passed: false,
      run: () => {
        const result = run(node);
        return "buffer" in result ? result : value(result);
      },
      ...(differentiable && { back: (dy: Value) => back(dy, node) }),
    };
    this.#value(node);
    if (differentiable) for (const input of needs) if (input) input.needed = true;
    this.#nodes.push(node);
    this.#scope.push(node);
    return this.#tensor(node);
  }

  /** The node's value, computed again where it was dropped. */
  #value(node: Node): Tensor {
    if (!node.value) {
      if (node.passed || !node.run)
        throw new Error("a tensor of a tape was used after `gradients` went past it; read it before");
      node.value = held(node.run());
    }
    return node.value.tensor;
  }

  #drop(dropped: Value | undefined): void {
    if (dropped && --dropped.buffer.holders === 0) this.#backward.free(dropped.tensor);
  }

  #forget(node: Node): void {
    this.#drop(node.value);
    node.value = undefined;
  }

  #pass(node: Node, keepValue: boolean): void {
    node.passed = true;
    this.#drop(node.gradient);
    this.#drop(node.aside);
    node.gradient = node.aside = undefined;
    if (!keepValue) this.#forget(node);
  }

  /** Adds to the gradient by a node. */
  #give(node: Node, more: Value): void {
    held(more);
    if (!node.differentiable) {
      this.#drop(more);
      return;
    }
    if (!node.run) this.#reached.add(node);
    const before = node.gradient;
    if (!before) {
      node.gradient = more;
      return;
    }
    node.gradient = held(value(this.#inner.add(before.tensor, more.tensor)));
    this.#drop(before);
    this.#drop(more);
  }

  /** The same, where the gradient is only computed if somebody wants it. */
  #offer(node: Node | undefined, make: () => Tensor): void {
    if (node?.differentiable) this.#give(node, value(make()));
  }

  /** The gradient by a leaf, in memory of its own. */
  #result(x: Tensor): Tensor {
    const leaf = node(x);
    if (x.backend !== this || leaf.run || !leaf.differentiable)
      throw new RangeError(`gradients: a tensor [${x.shape.join(", ")}] is not watched by this tape`);
    const { gradient } = leaf;
    leaf.gradient = undefined;
    if (!gradient) return this.#zeros(x.shape);
    if (gradient.buffer.holders === 1) return gradient.tensor;
    this.#drop(gradient);
    return this.#inner.add(gradient.tensor, this.#zeros(x.shape));
  }

  #zeros(shape: Shape): Tensor {
    return this.#inner.from(new Float32Array(elementCount(shape)), shape);
  }

  // --- the backend ---

  from(data: Float32Array | Float64Array | Int32Array, shape: Shape): Tensor {
    return this.#constant(this.#inner.from(data, shape));
  }

  async load(views: readonly TensorView[], options?: LoadOptions): Promise<Tensor[]> {
    return this.constant(await this.#inner.load(views, options));
  }

  kvPool(): KVPool {
    throw new RangeError("a tape has no KV cache: training computes whole sequences");
  }

  async scope<T>(body: () => Promise<T>, spent?: Tensor): Promise<T> {
    const around = this.#scope;
    const own: Node[] = [];
    this.#scope = own;
    try {
      const result = await body();
      const returned = new Set(nodesIn(result));
      for (const node of own) {
        if (!returned.has(node)) this.#settle(node);
        else {
          node.returned = true;
          around.push(node);
        }
      }
      if (spent && !returned.has(node(spent))) this.#settle(node(spent));
      return result;
    } finally {
      this.#scope = around;
    }
  }

  /** The forward pass is done with it. */
  #settle(node: Node): void {
    const stays = this.#recompute ? node.returned : node.needed;
    if (node.run && !stays) this.#forget(node);
  }

  async read(x: Tensor, into?: Float32Array): Promise<Float32Array | Float64Array> {
    return this.#inner.read(this.#value(node(x)), into);
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
      run: () => this.#inner.linear(this.#value(a), this.#value(m), bias && this.#value(bias), exact),
      needs: [m.differentiable && a, a.differentiable && m],
      back: ({ tensor: dy }) => {
        this.#offer(a, () => this.#backward.linearInput(dy, this.#value(m), undefined, exact));
        this.#offer(m, () => this.#backward.linearWeight(dy, this.#value(a), undefined, exact));
        this.#offer(bias, () => {
          const [, O] = dy.shape as [number, number];
          return this.#inner.reshape(this.#backward.sumTo(dy, [1, O]), [O]);
        });
      },
    });
    return m.lowRank ? this.#beside(y, m.lowRank, x, (x, w) => this.linear(x, w)) : y;
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
      run: () => this.#inner.add(this.#value(p), this.#value(q)),
      back: (dy) => {
        this.#give(p, dy);
        this.#give(q, dy);
      },
    });
  }

  mul(a: Tensor, b: Tensor): Tensor {
    const [p, q] = [node(a), node(b)];
    return this.#record({
      inputs: [p, q],
      run: () => this.#inner.mul(this.#value(p), this.#value(q)),
      needs: [p.differentiable && q, q.differentiable && p],
      back: ({ tensor: dy }) => {
        this.#offer(p, () => this.#inner.mul(dy, this.#value(q)));
        this.#offer(q, () => {
          const product = this.#inner.mul(dy, this.#value(p));
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
      run: () => this.#inner.rmsNorm(this.#value(a), weight && this.#value(weight), eps),
      needs: [a, weight ?? false],
      back: ({ tensor: dy }) => {
        const d = this.#backward.rmsNormBackward(this.#value(a), weight && this.#value(weight), eps, dy);
        this.#give(a, value(d.x));
        if (weight && d.w) this.#give(weight, value(d.w));
      },
    });
  }

  layerNorm(x: Tensor, w: Tensor, b: Tensor, eps: number): Tensor {
    const [a, weight, bias] = [node(x), node(w), node(b)];
    return this.#record({
      inputs: [a, weight, bias],
      run: () => this.#inner.layerNorm(this.#value(a), this.#value(weight), this.#value(bias), eps),
      needs: [a, weight],
      back: ({ tensor: dy }) => {
        const d = this.#backward.layerNormBackward(this.#value(a), this.#value(weight), eps, dy);
        this.#give(a, value(d.x));
        this.#give(weight, value(d.w));
        this.#give(bias, value(d.b));
      },
    });
  }

  swiglu(gate: Tensor, up: Tensor): Tensor {
    const [g, u] = [node(gate), node(up)];
    return this.#record({
      inputs: [g, u],
      run: () => this.#inner.swiglu(this.#value(g), this.#value(u)),
      needs: [g, u],
      back: ({ tensor: dy }) => {
        const d = this.#backward.swigluBackward(this.#value(g), this.#value(u), dy);
        this.#give(g, value(d.gate));
        this.#give(u, value(d.up));
      },
    });
  }

  gelu(x: Tensor): Tensor {
    const a = node(x);
    return this.#record({
      inputs: [a],
      run: () => this.#inner.gelu(this.#value(a)),
      needs: [a],
      back: ({ tensor: dy }) => this.#offer(a, () => this.#backward.geluBackward(this.#value(a), dy)),
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
      inputs: [a],
      run: () => this.#inner.rope(this.#value(a), this.#value(turns)),
      needs: [turns],
      back: ({ tensor: dy }) =>
        this.#offer(a, () => {
          const sign = this.#inner.from(Float32Array.of(1, -1), [1, 1, 2]); // the transpose of a rotation turns back
          const turnsBack = this.#inner.mul(this.#value(turns), sign);
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
      run: (node) => {
        const { y, lse } = this.#backward.attend(this.#value(qs), this.#value(ks), this.#value(vs), span);
        this.#drop(node.aside);
        node.aside = held(value(lse));
        return y;
      },
      needs: [qs, ks, vs],
      needsResult: true,
      back: ({ tensor: dy }, node) => {
        const y = this.#value(node); // and with it what is aside
        const lse = node.aside!.tensor;
        const d = this.#backward.attendBackward(this.#value(qs), this.#value(ks), this.#value(vs), y, lse, dy, span);
        this.#give(qs, value(d.q));
        this.#give(ks, value(d.k));
        this.#give(vs, value(d.v));
      },
    });
  }

  route(logits: Tensor, topK: number): Routes {
    const a = node(logits);
    const experts = this.#choose(this.#value(a), topK);
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
      run: () => this.#backward.scores(this.#value(logits), choice),
      needs: [logits],
      back: ({ tensor: dy }) =>
        this.#offer(logits, () => this.#backward.scoresBackward(this.#value(logits), choice, dy)),
    });
  }

  #routerLoss(logits: Node, loss: RouterLoss): Tensor {
    const scalar = this.#record({
      inputs: [logits],
      run: () => this.#backward.routerLoss(this.#value(logits), loss),
      needs: [logits],
      back: ({ tensor: dy }) =>
        this.#offer(logits, () => this.#backward.routerLossBackward(this.#value(logits), loss, dy)),
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
      run: () => this.#backward.groupedLinear(this.#value(a), this.#value(m), starts),
      needs: [m.differentiable && a, a.differentiable && m],
      back: ({ tensor: dy }) => {
        this.#offer(a, () => this.#backward.linearInput(dy, this.#value(m), starts));
        this.#offer(m, () => this.#backward.linearWeight(dy, this.#value(a), starts));
      },
    });
    return m.lowRank ? this.#beside(y, m.lowRank, x, (x, w) => this.#groupedLinear(x, w, starts)) : y;
  }

  reshape(x: Tensor, shape: Shape): Tensor {
    const a = node(x);
    const reshaped = ({ tensor, buffer }: Value, shape: Shape) => ({
      tensor: this.#inner.reshape(tensor, shape),
      buffer,
    });
    return this.#record({
      inputs: [a],
      run: () => {
        this.#value(a);
        return reshaped(a.value!, shape); // it was just computed
      },
      back: (dy) => this.#give(a, reshaped(dy, x.shape)),
    });
  }

  permute(x: Tensor, order: readonly number[]): Tensor {
    const a = node(x);
    return this.#record({
      inputs: [a],
      run: () => this.#inner.permute(this.#value(a), order),
      back: ({ tensor: dy }) =>
        this.#offer(a, () =>
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
      run: () => this.#inner.rows(this.#value(a), at),
      back: ({ tensor: dy }) => this.#offer(a, () => this.#backward.scatterRows(dy, at, x.shape[0]!)),
    });
  }

  splice(x: Tensor, replacement: Tensor, at: Int32Array): Tensor {
    const [a, fresh] = [node(x), node(replacement)];
    return this.#record({
      inputs: [a, fresh],
      run: () => this.#inner.splice(this.#value(a), this.#value(fresh), at),
      back: ({ tensor: dy }) => {
        const erased = (from: Tensor, rows: Int32Array) => {
          const zeros = this.#zeros([rows.length, ...from.shape.slice(1)]);
          const rest = this.#inner.splice(from, zeros, rows);
          this.#backward.free(zeros);
          return rest;
        };
        this.#offer(a, () => erased(dy, at));
        this.#offer(fresh, () => {
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
      run: () => this.#inner.crossEntropy(this.#value(a), targets),
      needs: [a],
      back: ({ tensor: dy }) => this.#offer(a, () => this.#backward.crossEntropyBackward(this.#value(a), targets, dy)),
    });
  }
}

function node(x: Tensor): Node {
  return x.data as Node; // the free functions dispatch on the tensor's backend: only the tape made it
}

function value(tensor: Tensor): Value {
  return { tensor, buffer: { holders: 0 } };
}

function held(value: Value): Value {
  value.buffer.holders++;
  return value;
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
