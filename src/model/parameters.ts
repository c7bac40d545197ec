// The tree of weights. D dim · H heads · K key/value heads · d head dim · E experts · F expert width · V vocabulary

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
