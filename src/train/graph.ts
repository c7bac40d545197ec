// The graph of a forward pass, and the way back through it: reverse-mode differentiation (Linnainmaa 1970), with what was
// dropped computed again where it is needed (Chen et al. 2016, arXiv:1604.06174). It knows no operation: see tape.ts.
//
// Every operation is a node: its value, how it is run, and how a gradient by it becomes gradients by its inputs.
// Values that the way back does not need die with the scope that made them; the others die as it passes them. All of
// them are counted, because the garbage collector does not see how large they are.

import type { Backend } from "../tensor/backend.ts";
import type { Backward } from "../tensor/backward.ts";
import { elementCount, type Shape, type Tensor } from "../tensor/tensor.ts";

/** A tensor of the backend that computes. */
export interface Value {
  readonly tensor: Tensor;
  /** What the tensor shares with its reshapes: its memory is freed when nobody holds any of them. */
  readonly buffer: { holders: number };
}

export interface Node {
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
  aside: Value | undefined;
  /** Absent for what was put in. */
  readonly run?: () => Made;
  readonly back?: (dy: Value) => void;
}

/** What an operation makes: with `buffer` in memory that it shares, with `aside` beside what its way back reads. */
interface Made {
  readonly tensor: Tensor;
  readonly buffer?: Value["buffer"];
  readonly aside?: Tensor;
}

export interface Operation {
  readonly inputs: readonly Node[];
  /** Of the inputs' values, in their order. */
  readonly run: (...values: Tensor[]) => Tensor | Made;
  /** What `back` reads the values of; `false` for nothing. */
  readonly needs?: readonly (Node | false)[];
  /** `back` reads the result's own value. */
  readonly needsResult?: boolean;
  /** Gives gradients to the inputs. */
  readonly back: (dy: Value, node: Node) => void;
}

/** One forward pass, then one `walkBack`, at a time. */
export class Graph {
  readonly #backend: Backend;
  readonly #backward: Backward;
  readonly #recompute: boolean;
  readonly #reached = new Set<Node>(); // leaves that have a gradient
  #nodes: Node[] = []; // in the order of the forward pass
  #scope: Node[] = [];

  /** `recompute`: keeps only what scopes return, and computes what is inside them again on the way back. */
  constructor(backend: Backend, backward: Backward, recompute: boolean) {
    this.#backend = backend;
    this.#backward = backward;
    this.#recompute = recompute;
  }

  // --- forward ---

  /** What is put in from outside, whose memory stays its owner's. It is no part of a pass, and outlives each. */
  leaf(tensor: Tensor, differentiable: boolean): Node {
    return { ...unrun, value: { tensor, buffer: { holders: Number.POSITIVE_INFINITY } }, differentiable, needed: true };
  }

  /** What this pass put in: its memory is freed when the pass is over. */
  constant(tensor: Tensor): Node {
    const node = { ...unrun, value: held(value(tensor)), differentiable: false, needed: true };
    this.#nodes.push(node);
    return node;
  }

  /** Runs an operation, and remembers how to go back. */
  record({ inputs, run, needs = [], needsResult = false, back }: Operation): Node {
    const differentiable = inputs.some((input) => input.differentiable);
    const node: Node = {
      ...unrun,
      differentiable,
      needed: differentiable && needsResult,
      run: () => {
        const made = run(...inputs.map((input) => this.value(input)));
        return "tensor" in made ? made : { tensor: made };
      },
      ...(differentiable && { back: (dy: Value) => back(dy, node) }),
    };
    this.value(node);
    if (differentiable) for (const input of needs) if (input) input.needed = true;
    this.#nodes.push(node);
    this.#scope.push(node);
    return node;
  }

  /** The node's value, computed again where it was dropped. */
  value(node: Node): Tensor {
    if (!node.value) {
      if (node.passed || !node.run)
        throw new Error("a tensor of a tape was used after `gradients` went past it; read it before");
      const { tensor, buffer = { holders: 0 }, aside } = node.run();
      node.value = held({ tensor, buffer });
      if (aside) this.keepAside(node, aside);
    }
    return node.value.tensor;
  }

  /** Beside the node, freed when the way back has passed it. */
  keepAside(node: Node, tensor: Tensor): void {
    this.#drop(node.aside);
    node.aside = held(value(tensor));
  }

  /** What `body` made and does not return is dropped after it, if the way back does not need it; so is `spent`. */
  async scope<T>(body: () => Promise<T>, nodesOf: (result: T) => Iterable<Node>, spent?: Node): Promise<T> {
    const around = this.#scope;
    const own: Node[] = [];
    this.#scope = own;
    try {
      const result = await body();
      const returned = new Set(nodesOf(result));
      for (const node of own) {
        if (!returned.has(node)) this.#settle(node);
        else {
          node.returned = true;
          around.push(node);
        }
      }
      if (spent && !returned.has(spent)) this.#settle(spent);
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

  // --- back ---

  /** From a scalar to the leaves, which then have their gradients; the scalar's own value stays. */
  walkBack(end: Node): void {
    if (end.differentiable) this.give(end, value(this.#backend.from(Float64Array.of(1), this.value(end).shape)));
    for (const node of this.#nodes.reverse()) {
      if (node.gradient) node.back?.(node.gradient);
      this.#pass(node, node === end);
    }
  }

  /** Adds to the gradient by a node. */
  give(node: Node, more: Value): void {
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
    node.gradient = held(value(this.#backend.add(before.tensor, more.tensor)));
    this.#drop(before);
    this.#drop(more);
  }

  /** The same, where the gradient is only computed if somebody wants it. */
  offer(node: Node | undefined, make: () => Tensor): void {
    if (node?.differentiable) this.give(node, value(make()));
  }

  /** The gradient by a leaf, in memory that is then the caller's alone; zeros where the walk did not come to it. */
  takeGradient(leaf: Node): Tensor {
    const { gradient } = leaf;
    const { shape } = this.value(leaf);
    leaf.gradient = undefined;
    if (!gradient) return this.zeros(shape);
    if (gradient.buffer.holders === 1) return gradient.tensor;
    this.#drop(gradient);
    return this.#backend.add(gradient.tensor, this.zeros(shape));
  }

  zeros(shape: Shape): Tensor {
    return this.#backend.from(new Float32Array(elementCount(shape)), shape);
  }

  /** Forgets the pass; leaves stay. */
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

  #pass(node: Node, keepValue: boolean): void {
    node.passed = true;
    this.#drop(node.gradient);
    this.#drop(node.aside);
    node.gradient = node.aside = undefined;
    if (!keepValue) this.#forget(node);
  }

  #forget(node: Node): void {
    this.#drop(node.value);
    node.value = undefined;
  }

  #drop(dropped: Value | undefined): void {
    if (dropped && --dropped.buffer.holders === 0) this.#backward.free(dropped.tensor);
  }
}

const unrun = {
  value: undefined,
  gradient: undefined,
  aside: undefined,
  needed: false,
  returned: false,
  passed: false,
};

/** In memory of its own, held by nobody yet. */
export function value(tensor: Tensor): Value {
  return { tensor, buffer: { holders: 0 } };
}

function held(value: Value): Value {
  value.buffer.holders++;
  return value;
}
