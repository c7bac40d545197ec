// The names of tensors in Meta's files, and their tree of weights put together from shards (specification §13).
//
// V vocabulary · D dim · E experts · F expert width · G dense width

import type { Llama4Config } from "../model/config.ts";
import type { Block, FeedForward, MoE } from "../model/parameters.ts";
import { CheckpointError } from "../tensor/errors.ts";
import { type Piece, type Shape, storedBytes, type TensorView } from "../tensor/tensor.ts";
import { type Bound, Found } from "./found.ts";
import { show } from "./json.ts";
import { bindVision, type Cut, legacyPositions, metaVision } from "./names-vision.ts";
import { sideBySide } from "./source.ts";

const meta = {
  tokEmbeddings: "tok_embeddings.weight",
  norm: "norm.weight",
  output: "output.weight",
  layer: (i: number) => {
    const at = (rest: string) => `layers.${i}.${rest}`;
    return {
      attentionNorm: at("attention.wqkv.layer_norm_weight"),
      wqkv: at("attention.wqkv.weight"), // in each shard its heads' q rows, k rows, v rows
      wo: at("attention.wo.weight"),
      ffnNorms: [at("feed_forward.norm.weight"), at("feed_forward.mlp.layer_norm_weight")],
      gateUp: at("feed_forward.mlp.fc1_weight"), // in each shard gate rows, up rows
      down: at("feed_forward.mlp.fc2_weight"),
      router: at("feed_forward.router_DE"),
      experts: {
        w1: at("feed_forward.experts.moe_w_in_eD_F"),
        w2: at("feed_forward.experts.moe_w_out_eF_D"),
        w3: at("feed_forward.experts.moe_w_swiglu_eD_F"),
      },
      shared: {
        w1: at("feed_forward.w_in_shared_FD.weight"),
        w2: at("feed_forward.w_out_shared_DF.weight"),
        w3: at("feed_forward.w_swiglu_FD.weight"),
      },
    };
  },
  // Statistics of training and tables that are computed.
  dropped: /(^rope\.freqs|_extra_state|global_gate_stats_3E|running_gate_stats_3E|expert_activation_DE)$/,
  vision: /^vision_(embeddings|projection)\./,
};

/** The rows of the embedding table in a shard; 0 where there is none. */
export function metaVocabRows(shard: readonly TensorView[]): number {
  return shard.find(({ name }) => name === meta.tokEmbeddings)?.shape[0] ?? 0;
}

/** The trees of a Meta checkpoint whose `shards` split heads and widths between them (model parallelism). */
export function bindMeta(c: Llama4Config, shards: readonly (readonly TensorView[])[], folder: string): Bound {
  const found = shards.map((tensors, i) => new Found(tensors, `${folder}: shard ${i}`));
  const n = shards.length;
  const { dim: D, nExperts: E } = c;
  const part = (size: number, what: string) => {
    if (size % n) throw new CheckpointError(`${folder}: ${size} ${what} in ${n} shards; expected a multiple`);
    return size / n;
  };
  const q = part(c.nHeads * c.headDim, "query rows"); // of a shard, as all below
  const kv = part(c.nKvHeads * c.headDim, "key rows");
  const [F, G] = [part(c.expertDim, "expert columns"), part(c.ffnDim, "feed-forward columns")];
  const V = part(c.vocabSize, "words");

  const whole = (name: string, shape: Shape) => found.map((shard) => shard.take(name, shape))[0]!; // replicated
  const all = (name: string, shape: Shape) => found.map((shard) => shard.take(name, shape));
  /** The same `rows` of every shard, end to end. */
  const rowsOf = (parts: readonly TensorView[], from: number, rows: number) =>
    joined(parts, 1, from, rows, [n * rows, ...parts[0]!.shape.slice(1)]);
  /** Columns side by side. */
  const columnsOf = (parts: readonly TensorView[]) => {
    const [rows, columns] = parts[0]!.shape as [number, number];
    return joined(parts, rows, 0, 1, [rows, n * columns]);
  };
  const turned = (view: TensorView, [experts, rows, columns]: [number, number, number]): TensorView => ({
    ...view,
    shape: experts === 0 ? [columns, rows] : [experts, columns, rows],
    strides: experts === 0 ? [1, columns] : [rows * columns, 1, columns],
  });

  const block = (i: number, moe: boolean): Block<TensorView> => {
    const names = meta.layer(i);
    const wqkv = all(names.wqkv, [q + 2 * kv, D]);
    const dense = (): FeedForward<TensorView> => {
      const gateUp = all(names.gateUp, [2 * G, D]);
      return {
        w1: rowsOf(gateUp, 0, G),
        w2: columnsOf(all(names.down, [D, G])),
        w3: rowsOf(gateUp, G, G),
      };
    };
    const experts = (): MoE<TensorView> => {
      const [gate, up] = [names.experts.w1, names.experts.w3].map((name) => columnsOf(all(name, [E * D, F])));
      // A shard's rows are [E, F / n, D]: its part of every expert, end to end.
      const down = joined(all(names.experts.w2, [E * F, D]), E, 0, F, [E * F * n, D]);
      const { w1, w2, w3 } = names.shared;
      return {
        router: turned(whole(names.router, [D, E]), [0, D, E]),
        experts: {
          gate: turned(gate!, [E, D, F * n]),
          up: turned(up!, [E, D, F * n]),
          down: turned(down, [E, F * n, D]),
        },
        shared: {
          w1: rowsOf(all(w1, [F, D]), 0, F),
          w2: columnsOf(all(w2, [D, F])),
          w3: rowsOf(all(w3, [F, D]), 0, F),
        },
      };
    };
    const ffnNorm = names.ffnNorms.find((name) => found[0]!.has(name)) ?? names.ffnNorms[0]!;
    return {
      attentionNorm: whole(names.attentionNorm, [D]),
      wq: rowsOf(wqkv, 0, q),
      wk: rowsOf(wqkv, q, kv),
      wv: rowsOf(wqkv, q + kv, kv),
      wo: columnsOf(all(names.wo, [D, q])),
      ffnNorm: whole(ffnNorm, [D]),
      ffn: moe ? experts() : dense(),
    };
  };
  const parameters = {
    tokEmbeddings: rowsOf(all(meta.tokEmbeddings, [V, D]), 0, V),
    layers: c.layers.map((kind, i) => block(i, kind.moe)),
    norm: whole(meta.norm, [D]),
    output: rowsOf(all(meta.output, [V, D]), 0, V),
  };
  const cut = ({ name, by }: Cut, [rows, ...columns]: Shape): TensorView => {
    if (by === "none") return whole(name, [rows!, ...columns]);
    if (by === "columns") return columnsOf(all(name, [rows!, part(columns[0]!, "vision columns")]));
    const each = part(rows!, "vision rows");
    return rowsOf(all(name, [each, ...columns]), 0, each);
  };
  const hasVision = c.vision && shards[0]!.some(({ name }) => meta.vision.test(name));
  const names = c.vision && metaVision(c.vision.nLayers);
  if (names && found[0]!.has(legacyPositions) && !found[0]!.has(names.positionEmbedding.name))
    throw new CheckpointError(
      `${folder}: ${show(legacyPositions)} is the table from before the encoder was fitted to tiles; ` +
        `expected ${show(names.positionEmbedding.name)}, as the published checkpoints have it`,
    );
  const vision = hasVision && names && bindVision(c, names, cut);
  const dropped = (name: string) => meta.dropped.test(name) || name === legacyPositions;
  for (const shard of found) shard.refuse((name) => !dropped(name) && (hasVision || !meta.vision.test(name)));
  return { parameters, ...(vision && { vision }) };
}

/**
 * In each of `parts`, its rows cut into `groups` equal groups; of each group the same range of `of` `run` rows' bytes
 * stands beside the other parts'. One part alone stays a view of its file.
 */
function joined(parts: readonly TensorView[], groups: number, from: number, run: number, shape: Shape): TensorView {
  const first = parts[0]!;
  const different = parts.find(({ dtype }) => dtype !== first.dtype);
  if (different)
    throw new CheckpointError(
      `${different.source.name}: ${show(different.name)} is ${different.dtype}, in another shard ${first.dtype}; expected one dtype`,
    );
  // With several groups (columns, experts) a part gives all its bytes, a group's worth at a time.
  const row = storedBytes({ dtype: first.dtype, shape: first.shape.slice(1) });
  const runBytes = groups === 1 ? run * row : storedBytes(first) / groups;
  const skip = from * row;
  if (parts.length === 1) return { ...first, shape, offset: first.offset + skip };
  const pieces = parts.map(({ source, offset }): Piece => ({ source, offset: offset + skip, run: runBytes }));
  return { name: first.name, dtype: first.dtype, shape, source: sideBySide(first.name, groups, pieces), offset: 0 };
}
