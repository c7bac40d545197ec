// The vision encoder, its adapter and its projector: tiles to rows of the text model's width (specification §6).
//
// N tiles · S side of a tile · P side of a patch · G = S / P patches along a side · T = G² + 1 tokens of a tile
// Dv width · H heads · d head dim · s side of the square of patches that becomes one row · D dim of the text model

import type { Segment } from "../tensor/backend.ts";
import { add, attend, embed, gelu, layerNorm, linear, permute, reshape, rope, rows, splice } from "../tensor/ops.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { Llama4Config, VisionConfig } from "./config.ts";
import type { Affine, VisionBlock, VisionParameters } from "./parameters.ts";
import { tileRotations } from "./rope.ts";

/** Sees the hidden states `[N·T, Dv]` before the first block (layer 0) and after each; then the adapter's output `[N·G²/s², O]`. */
export type VisionObserver = (layer: number, h: Tensor) => Promise<void>;

/** Image features `[N · tokensPerTile, D]` of tiles `[N, 3, S, S]` in [−1, 1]; a tile sees only itself. */
export async function encodeImage(
  p: VisionParameters,
  c: Llama4Config,
  tiles: Tensor,
  observe?: VisionObserver,
): Promise<Tensor> {
  const { vision: v } = c;
  if (!v) throw new RangeError("encodeImage: the config has no vision encoder");
  const { nChannels: C, imageSize: S } = v;
  const [N] = tiles.shape as [number];
  if (tiles.shape.join() !== [N, C, S, S].join())
    throw new RangeError(`encodeImage: tiles are [${tiles.shape.join(", ")}]; expected [N, ${C}, ${S}, ${S}]`);
  const { backend } = p.projector;
  return backend.scope(async () => {
    const place = placeTiles(p, v, N);
    let h = await backend.scope(async () => embedTiles(tiles, p, v, place)); // [N·T, Dv]
    await observe?.(0, h);
    for (const [i, w] of p.layers.entries()) {
      h = await backend.scope(async () => block(h, w, v, place), h);
      await observe?.(i + 1, h);
    }
    const patches = norm(rows(h, place.patches), p.normPost, v); // [N·G², Dv]; the class token has done its work
    const { fc1, fc2 } = p.adapter;
    const adapted = gelu(linear(gelu(linear(pixelShuffle(patches, v, N), fc1)), fc2)); // [N·G²/s², O]
    await observe?.(p.layers.length + 1, adapted);
    return linear(adapted, p.projector); // [N·G²/s², D]
  });
}

/** Patches, row by row, and after those of a tile its class token. */
function embedTiles(tiles: Tensor, p: VisionParameters, v: VisionConfig, { N, T, patches }: Place): Tensor {
  const { nChannels: C, patchSize: P } = v;
  const G = v.imageSize / P;
  const grid = permute(reshape(tiles, [N, C, G, P, G, P]), [0, 2, 4, 1, 3, 5]); // [N, G, G, C, P, P]
  const embedded = linear(reshape(grid, [N * G * G, C * P * P]), p.patchEmbedding); // [N·G², Dv]
  const classes = embed(reshape(p.classEmbedding, [1, v.dim]), new Int32Array(N * T)); // [N·T, Dv]
  const positions = Int32Array.from({ length: N * T }, (_, row) => row % T);
  return norm(add(splice(classes, embedded, patches), rows(p.positionEmbedding, positions)), p.normPre, v); // [N·T, Dv]
}

function block(x: Tensor, w: VisionBlock, v: VisionConfig, place: Place): Tensor {
  const h = add(x, attention(norm(x, w.attentionNorm, v), w, v, place));
  return add(h, affine(gelu(affine(norm(h, w.mlpNorm, v), w.fc1)), w.fc2)); // [N·T, Dv]
}

function attention(x: Tensor, w: VisionBlock, v: VisionConfig, { N, T, segments, rotations }: Place): Tensor {
  const heads = [N * T, v.nHeads, v.dim / v.nHeads];
  const q = rope(reshape(affine(x, w.wq), heads), rotations); // [N·T, H, d]
  const k = rope(reshape(affine(x, w.wk), heads), rotations); // [N·T, H, d]
  const values = reshape(affine(x, w.wv), heads); // [N·T, H, d]
  return affine(reshape(attend(q, k, values, { segments, causal: false }), [N * T, v.dim]), w.wo); // [N·T, Dv]
}

const affine = (x: Tensor, { weight, bias }: Affine): Tensor => linear(x, weight, bias);
const norm = (x: Tensor, { weight, bias }: Affine, v: VisionConfig): Tensor => layerNorm(x, weight, bias, v.normEps);

/** Pixel shuffle: each square of s × s patches becomes one row, its patches side by side, row by row. */
function pixelShuffle(x: Tensor, v: VisionConfig, N: number): Tensor {
  const { dim, shuffle: s } = v;
  const g = v.imageSize / v.patchSize / s;
  return reshape(permute(reshape(x, [N, g, s, g, s, dim]), [0, 1, 3, 2, 4, 5]), [N * g * g, s * s * dim]); // [N·G²/s², s²·Dv]
}

/** Where the tokens of the tiles stand, worked out once for all layers. */
interface Place {
  readonly N: number;
  readonly T: number;
  readonly segments: readonly Segment[];
  /** The rows of patches: all but each tile's last. */
  readonly patches: Int32Array; // [N·G²]
  readonly rotations: Tensor; // [N·T, d/2, 2]
}

function placeTiles({ projector: { backend } }: VisionParameters, v: VisionConfig, N: number): Place {
  const T = (v.imageSize / v.patchSize) ** 2 + 1;
  const rotations = tileRotations(v);
  const all = new Float64Array(N * rotations.length);
  for (let n = 0; n < N; n++) all.set(rotations, n * rotations.length);
  return {
    ...{ N, T },
    segments: Array.from({ length: N }, (_, n) => ({ row: n * T, length: T, position: 0, sequence: n })),
    patches: Int32Array.from({ length: N * (T - 1) }, (_, i) => i + Math.floor(i / (T - 1))),
    rotations: backend.from(all, [N * T, v.dim / v.nHeads / 2, 2]),
  };
}
