// The trees of weights. D dim · H heads · K key/value heads · d head dim · E experts · F expert width · V vocabulary
// Of the vision encoder: Dv width · M width of its MLP · G² patches of P² pixels · s² of them a token · A, O adapter widths

import type { ExpertBank } from "../tensor/backend.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** A SwiGLU feed-forward: w1 (gate) and w3 (up) `[F, D]`, w2 (down) `[D, F]`. */
export interface FeedForward<W = Tensor> {
  readonly w1: W;
  readonly w2: W;
  readonly w3: W;
}

/** Routed experts: the router `[E, D]`, gate and up `[E, F, D]`, down `[E, D, F]`, and the shared expert. */
export interface MoE<W = Tensor> {
  readonly router: W;
  readonly experts: { readonly [K in keyof ExpertBank]: W };
  readonly shared: FeedForward<W>;
}

export interface Block<W = Tensor> {
  readonly attentionNorm: W; // [D]
  readonly wq: W; // [H·d, D]
  readonly wk: W; // [K·d, D]
  readonly wv: W; // [K·d, D]
  readonly wo: W; // [D, H·d]
  readonly ffnNorm: W; // [D]
  readonly ffn: FeedForward<W> | MoE<W>;
}

/** `W` is what stands for a weight: a loaded tensor, or a view of one in a checkpoint. */
export interface Parameters<W = Tensor> {
  readonly tokEmbeddings: W; // [V, D]
  readonly layers: readonly Block<W>[];
  readonly norm: W; // [D]
  readonly output: W; // [V, D]; the embedding table itself where the config ties them
}

/** The tree with every weight replaced; a weight that stands twice (tied) is handed over twice. */
export function mapParameters<A, B>(p: Parameters<A>, f: (weight: A) => B): Parameters<B> {
  const ffn = ({ w1, w2, w3 }: FeedForward<A>): FeedForward<B> => ({ w1: f(w1), w2: f(w2), w3: f(w3) });
  const block = (b: Block<A>): Block<B> => ({
    attentionNorm: f(b.attentionNorm),
    wq: f(b.wq),
    wk: f(b.wk),
    wv: f(b.wv),
    wo: f(b.wo),
    ffnNorm: f(b.ffnNorm),
    ffn: "router" in b.ffn ? moe(b.ffn) : ffn(b.ffn),
  });
  const moe = ({ router, experts: { gate, up, down }, shared }: MoE<A>): MoE<B> => ({
    router: f(router),
    experts: { gate: f(gate), up: f(up), down: f(down) },
    shared: ffn(shared),
  });
  return { tokEmbeddings: f(p.tokEmbeddings), layers: p.layers.map(block), norm: f(p.norm), output: f(p.output) };
}

/**
 * Where a block takes a low-rank change of its weights (LoRA). w1, w2 and w3 are a dense layer's or the shared expert's;
 * `gateUp` is one change for the routed experts' gate and up, which Hugging Face's files hold as one.
 */
export const slots = ["wq", "wk", "wv", "wo", "w1", "w2", "w3", "gateUp", "down"] as const;
export type Slot = (typeof slots)[number];

/** The weights of a slot; none where the block has no such. */
export function weightsOf<W>({ ffn, ...b }: Block<W>, slot: Slot): readonly W[] {
  switch (slot) {
    case "gateUp":
      return "router" in ffn ? [ffn.experts.gate, ffn.experts.up] : [];
    case "down":
      return "router" in ffn ? [ffn.experts.down] : [];
    case "w1":
    case "w2":
    case "w3":
      return ["router" in ffn ? ffn.shared[slot] : ffn[slot]];
    default:
      return [b[slot]];
  }
}

/** A linear layer `[out, in]` or a LayerNorm `[Dv]`, with its bias. */
export interface Affine<W = Tensor> {
  readonly weight: W;
  readonly bias: W;
}

export interface VisionBlock<W = Tensor> {
  readonly attentionNorm: Affine<W>; // [Dv]
  readonly wq: Affine<W>; // [Dv, Dv]
  readonly wk: Affine<W>; // [Dv, Dv]
  readonly wv: Affine<W>; // [Dv, Dv]
  readonly wo: Affine<W>; // [Dv, Dv]
  readonly mlpNorm: Affine<W>; // [Dv]
  readonly fc1: Affine<W>; // [M, Dv]
  readonly fc2: Affine<W>; // [Dv, M]
}

export interface VisionParameters<W = Tensor> {
  readonly patchEmbedding: W; // [Dv, 3·P²]: channel by channel, row by row
  readonly classEmbedding: W; // [Dv]
  readonly positionEmbedding: W; // [G² + 1, Dv], the class token's row last
  readonly normPre: Affine<W>; // [Dv]
  readonly layers: readonly VisionBlock<W>[];
  readonly normPost: Affine<W>; // [Dv]
  readonly adapter: { readonly fc1: W; readonly fc2: W }; // [A, Dv·s²], [O, A]
  readonly projector: W; // [D, O]
}

/** The tree with every weight replaced, visited in the order of Hugging Face's files. */
export function mapVision<A, B>(p: VisionParameters<A>, f: (weight: A) => B): VisionParameters<B> {
  const affine = ({ weight, bias }: Affine<A>): Affine<B> => ({ weight: f(weight), bias: f(bias) });
  const block = (b: VisionBlock<A>): VisionBlock<B> => ({
    attentionNorm: affine(b.attentionNorm),
    wq: affine(b.wq),
    wk: affine(b.wk),
    wv: affine(b.wv),
    wo: affine(b.wo),
    mlpNorm: affine(b.mlpNorm),
    fc1: affine(b.fc1),
    fc2: affine(b.fc2),
  });
  return {
    patchEmbedding: f(p.patchEmbedding),
    classEmbedding: f(p.classEmbedding),
    positionEmbedding: f(p.positionEmbedding),
    normPre: affine(p.normPre),
    layers: p.layers.map(block),
    normPost: affine(p.normPost),
    adapter: { fc1: f(p.adapter.fc1), fc2: f(p.adapter.fc2) },
    projector: f(p.projector),
  };
}
