// Meta's params.json (specification §1.4).

import { type Llama4Config, layerKinds, presets, publishedPreprocessing, type VisionConfig } from "../model/config.ts";
import { checked, mostLayers, temperatureOf } from "./config.ts";
import { Fields, type Json } from "./json.ts";

/** Reads `params.json`. What it leaves to the code stands in specification §1.4; -1 words means those of the embedding table. */
export function fromMeta(json: Json, { vocabRows }: { vocabRows: number }, name = "params.json"): Llama4Config {
  // Meta's own dumps write null for what is optional, and mean that it is not there.
  const top = new Fields(Object.fromEntries(Object.entries(json).filter(([, value]) => value !== null)), name);
  const [dim, nHeads] = [top.count("dim"), top.count("n_heads")];
  const nLayers = top.count("n_layers", { most: mostLayers });
  const moe = top.object("moe_args");
  const scaled = top.flag("use_scaled_rope", false);
  const chunk = top.has("attention_chunk_size") ? top.count("attention_chunk_size") : undefined;
  const step = moe ? moe.count("interleave_moe_layer_step", { absent: 1 }) : 0;
  const contextLength = top.count("max_seq_len", { absent: scaled ? 10485760 : 1048576 });
  const layers = layerKinds(nLayers, top.count("nope_layer_interval", { absent: 0, least: 0 }), step);
  const vision = top.object("vision_args");
  if (top.raw("head_dim") === undefined && dim % nHeads) throw top.wrong("n_heads", `a divisor of dim, ${dim}`);

  const multiple = top.count("multiple_of", { absent: 1024 });
  const rounded = (width: number) => Math.ceil(width / multiple) * multiple;
  const hidden = Math.floor((2 * Math.floor(top.positive("ffn_exp", 4) * dim)) / 3);
  const dense = Math.floor(top.positive("ffn_dim_multiplier", 1.2) * hidden);
  const perExpert = moe?.flag("auto_scale_F", true) ? dense / (moe.positive("capacity_factor", 1) + 1) : dense;
  return checked(
    {
      vocabSize: top.raw("vocab_size") === -1 ? vocabRows : top.count("vocab_size"),
      dim,
      nHeads,
      nKvHeads: top.count("n_kv_heads", { absent: nHeads }),
      headDim: top.count("head_dim", { absent: dim / nHeads }),
      ffnDim: rounded(dense),
      expertDim: rounded(Math.floor(perExpert)),
      nExperts: moe ? moe.count("num_experts") : 0,
      topK: moe ? moe.count("top_k", { absent: 1 }) : 1,
      layers: chunk ? layers : layers.map((kind) => ({ ...kind, chunked: false })),
      attentionChunk: chunk ?? contextLength,
      normEps: top.positive("norm_eps", 1e-5),
      qkNorm: top.flag("use_qk_norm", false),
      ropeTheta: top.positive("rope_theta"),
      ...(scaled && {
        ropeScaling: {
          factor: top.positive("rope_scaling_factor", 16),
          lowFreqFactor: 1,
          highFreqFactor: top.positive("rope_high_freq_factor", 1),
          originalContext: 8192,
        },
      }),
      ...(temperatureOf(top, "attn_temperature_tuning", false) && {
        temperature: { floor: top.positive("floor_scale", 8192), scale: top.positive("attn_scale", 0.1) },
      }),
      tied: false,
      contextLength,
      tokens: presets.scout.tokens, // Meta's folders come with Meta's vocabulary
      ...(vision && { vision: metaVision(vision) }),
    },
    name,
  );
}

function metaVision(v: Fields): VisionConfig {
  const side = (key: string) => v.object(key)?.count("height") ?? v.count(key);
  const dim = v.count("dim");
  const shuffle = Math.round(1 / v.positive("pixel_shuffle_ratio", 0.5));
  const outputDim = v.count("output_dim");
  return {
    dim,
    nLayers: v.count("n_layers", { most: mostLayers }),
    nHeads: v.count("n_heads"),
    ffnDim: Math.floor(dim * v.positive("mlp_ratio", 4)),
    imageSize: side("image_size"),
    patchSize: side("patch_size"),
    nChannels: 3,
    normEps: 1e-5,
    ropeTheta: 10000,
    shuffle,
    adapterDim: outputDim,
    outputDim,
    preprocessing: publishedPreprocessing,
  };
}
