// Hugging Face's config.json and generation_config.json (specification §1).

import {
  type LayerKind,
  type Llama4Config,
  layerKinds,
  publishedPreprocessing,
  type RopeScaling,
  type VisionConfig,
} from "../model/config.ts";
import { checked, mostLayers, temperatureOf, tokenId } from "./config.ts";
import { Fields, type Json } from "./json.ts";
import { scalingOf } from "./rope-divisors.ts";

// Absent keys have the values of transformers' Llama4TextConfig and Llama4VisionConfig: files leave equal ones out. `null`
// means what it means there: no chunks (attention_chunk_size), derived (head_dim, num_key_value_heads, the lists of layers),
// none (rope_scaling, rope_parameters, token ids, text_config); any other key refuses it. A null vision_config is a text
// model's, where transformers would invent an encoder.

/** Reads `config.json`, of `llama4` with a nested text model or of `llama4_text`. */
export function fromHuggingFace(json: Json, name = "config.json"): Llama4Config {
  const top = new Fields(json, name);
  const type = top.raw("model_type");
  if (type !== "llama4" && type !== "llama4_text") throw top.wrong("model_type", '"llama4" or "llama4_text"');
  const text = top.object("text_config") ?? top;
  const nLayers = text.count("num_hidden_layers", { absent: 48, most: mostLayers });
  const vision = top.object("vision_config");
  const [dim, nHeads] = [
    text.count("hidden_size", { absent: 5120 }),
    text.count("num_attention_heads", { absent: 40 }),
  ];
  const headDim = text.isNull("head_dim") ? dim / nHeads : text.count("head_dim", { absent: 128 });
  const chunk = chunkOf(text);
  const layers = huggingFaceLayers(text, nLayers, chunk !== undefined);
  const hasExperts = layers.some((kind) => kind.moe);
  const contextLength = text.count("max_position_embeddings", { absent: 131072 });
  refuseOtherModels(text);
  refuseOtherQuantizations(top);
  const rope = ropeOf(text);
  const tied = text.raw("tie_word_embeddings") ?? top.raw("tie_word_embeddings") ?? false;
  const bos = tokenId(text, "bos_token_id") ?? tokenId(top, "bos_token_id");
  const eos = tokenIds(text.has("eos_token_id") ? text : top, "eos_token_id");
  const image = [
    ["imageStart", tokenId(top, "boi_token_index")],
    ["imageEnd", tokenId(top, "eoi_token_index")],
    ["patch", tokenId(top, top.has("image_token_index") ? "image_token_index" : "image_token_id")],
  ].filter(([, id]) => id !== undefined);
  return checked(
    {
      vocabSize: text.count("vocab_size", { absent: 202048 }),
      dim,
      nHeads,
      nKvHeads: text.isNull("num_key_value_heads")
        ? nHeads
        : text.count("num_key_value_heads", { absent: text.has("num_attention_heads") ? nHeads : 8 }),
      headDim,
      ffnDim: text.count("intermediate_size_mlp", { absent: 16384 }),
      expertDim: text.count("intermediate_size", { absent: 8192 }),
      nExperts: hasExperts ? text.count("num_local_experts", { absent: 16 }) : 0,
      topK: hasExperts ? text.count("num_experts_per_tok", { absent: 1 }) : 1,
      layers,
      attentionChunk: chunk ?? contextLength,
      normEps: text.positive("rms_norm_eps", 1e-5),
      qkNorm: text.flag("use_qk_norm", true),
      ropeTheta: rope.theta,
      ...(rope.scaling && { ropeScaling: rope.scaling }),
      ...(temperatureOf(text, "attn_temperature_tuning", true) && {
        temperature: {
          floor: text.positive("floor_scale", 8192),
          scale: text.positive("attn_scale", 0.1),
        },
      }),
      tied: typeof tied === "boolean" ? tied : top.flag("tie_word_embeddings"),
      contextLength,
      tokens: { ...(bos !== undefined && { bos }), eos, ...Object.fromEntries(image) },
      ...(vision && { vision: huggingFaceVision(vision) }),
    },
    name,
  );
}

function chunkOf(text: Fields, absent = 8192): number | undefined {
  return text.isNull("attention_chunk_size") ? undefined : text.count("attention_chunk_size", { absent });
}

function huggingFaceLayers(text: Fields, nLayers: number, chunks: boolean): LayerKind[] {
  const perLayer = (key: string) => {
    const list = text.counts(key, { most: 1 });
    if (list.length !== nLayers) throw text.wrong(key, `one flag for each of ${nLayers} layers`);
    return list.map(Boolean);
  };
  const step = text.count("interleave_moe_layer_step", { absent: 1, least: 0 });
  const interval = text.count("no_rope_layer_interval", { absent: 4, least: 0 });
  const usual = layerKinds(nLayers, interval, text.raw("num_local_experts") === 0 ? 0 : step);
  const flags = text.raw("no_rope_layers"); // 1 = rotary, in spite of the name; [] = by the interval
  const rope =
    flags === undefined || (Array.isArray(flags) && flags.length === 0)
      ? usual.map((kind) => kind.rope)
      : perLayer("no_rope_layers");
  const moe = text.has("moe_layers") ? new Set(text.counts("moe_layers", { most: nLayers - 1 })) : undefined;
  const types = text.raw("layer_types");
  if (types !== undefined) {
    const known = (type: unknown) => type === "chunked_attention" || type === "full_attention";
    if (!Array.isArray(types) || types.length !== nLayers || !types.every(known))
      throw text.wrong("layer_types", `"chunked_attention" or "full_attention" for each of ${nLayers} layers`);
  }
  return usual.map((kind, i) => ({
    rope: rope[i]!,
    chunked: chunks && (Array.isArray(types) ? types[i] === "chunked_attention" : rope[i]!),
    moe: moe ? moe.has(i) : kind.moe,
  }));
}

/** 8-bit floats with factors for rows are read (fp8.ts); which tensors have them, the tensors say. */
function refuseOtherQuantizations(top: Fields): void {
  const quantization = top.object("quantization_config");
  if (!quantization) return;
  if (quantization.raw("quant_method") !== "compressed-tensors")
    throw quantization.wrong("quant_method", '"compressed-tensors"; get the bf16 checkpoint or a GGUF');
  if (quantization.raw("format") !== "float-quantized")
    throw quantization.wrong("format", '"float-quantized"; get the bf16 checkpoint or a GGUF');
}

function refuseOtherModels(text: Fields): void {
  if (text.flag("attention_bias", false))
    throw text.wrong("attention_bias", "false: Llama 4's text model has no biases");
  if (text.scalar("hidden_act", "silu") !== "silu") throw text.wrong("hidden_act", '"silu"');
}

/** `rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling` before. */
function ropeOf(text: Fields, usualTheta = 500000): { theta: number; scaling?: RopeScaling } {
  const parameters = text.object("rope_parameters");
  const scaling = parameters ?? text.object("rope_scaling");
  const theta = parameters?.has("rope_theta")
    ? parameters.positive("rope_theta")
    : text.positive("rope_theta", usualTheta);
  if (!scaling) return { theta };
  const key = scaling.has("rope_type") ? "rope_type" : "type"; // "type" in the oldest files
  const type = scaling.raw(key) ?? "default";
  if (type === "default") return { theta };
  if (type !== "llama3") throw scaling.wrong(key, '"llama3" or "default"');
  const lowFreqFactor = scaling.positive("low_freq_factor");
  const highFreqFactor = scaling.positive("high_freq_factor");
  if (highFreqFactor < lowFreqFactor)
    throw scaling.wrong("high_freq_factor", `at least low_freq_factor, ${lowFreqFactor}`);
  return {
    theta,
    scaling: {
      factor: scaling.positive("factor"),
      lowFreqFactor,
      highFreqFactor,
      originalContext: scaling.count("original_max_position_embeddings"),
    },
  };
}

function tokenIds(fields: Fields, key: string): number[] {
  const value = fields.raw(key);
  if (value === undefined) return [];
  return Array.isArray(value) ? fields.counts(key) : [fields.count(key, { least: 0 })];
}

/** `eos_token_id` and `bos_token_id` of generation_config.json, and the sampling that its model was tuned for. */
export function readGenerationConfig(json: Json, name = "generation_config.json") {
  const fields = new Fields(json, name);
  const bos = tokenId(fields, "bos_token_id");
  return {
    ...(bos !== undefined && { bos }),
    eos: tokenIds(fields, "eos_token_id"),
    defaults: {
      ...(fields.raw("do_sample") === false
        ? { temperature: 0 }
        : fields.has("temperature") && { temperature: fields.positive("temperature") }),
      ...(fields.has("top_p") && { topP: fields.positive("top_p") }),
    },
  };
}

function huggingFaceVision(v: Fields): VisionConfig {
  const ratio = v.positive("pixel_shuffle_ratio", 0.5);
  const shuffle = Math.round(1 / ratio);
  if (shuffle < 1 || Math.abs(shuffle * ratio - 1) > 1e-6)
    throw v.wrong("pixel_shuffle_ratio", "1 divided by a whole number");
  if (v.flag("multi_modal_projector_bias", false)) throw v.wrong("multi_modal_projector_bias", "false");
  const dim = v.count("hidden_size", { absent: 768 });
  if (v.count("intermediate_size", { absent: 5632 }) !== dim * shuffle ** 2)
    throw v.wrong(
      "intermediate_size",
      `hidden_size / pixel_shuffle_ratio² = ${dim * shuffle ** 2}, the adapter's input`,
    );
  return {
    dim,
    nLayers: v.count("num_hidden_layers", { absent: 34, most: mostLayers }),
    nHeads: v.count("num_attention_heads", { absent: 16 }),
    ffnDim: v.count("intermediate_size", { absent: 5632 }),
    imageSize: v.count("image_size", { absent: 448, most: 65536 }),
    patchSize: v.count("patch_size", { absent: 14 }),
    nChannels: v.count("num_channels", { absent: 3 }),
    normEps: v.positive("norm_eps", 1e-5),
    ropeTheta: ropeOf(v, 10000).theta,
    shuffle,
    adapterDim: v.count("projector_input_dim", { absent: 4096 }),
    outputDim: v.count("vision_output_dim", { absent: 7680 }),
    preprocessing: publishedPreprocessing, // unless preprocessor_config.json says otherwise
  };
}

/** `config.json` for a config; throws CheckpointError where it cannot say what the model is. */
export function toHuggingFace(c: Llama4Config, dtype: "float32" | "float16" | "bfloat16" = "bfloat16"): Json {
  const nope = c.layers.findIndex((kind) => !kind.rope);
  const scaling = c.ropeDivisors ? scalingOf(c.ropeDivisors, c.ropeTheta, c.headDim) : c.ropeScaling;
  const text = {
    model_type: "llama4_text",
    vocab_size: c.vocabSize,
    hidden_size: c.dim,
    num_hidden_layers: c.layers.length,
    num_attention_heads: c.nHeads,
    num_key_value_heads: c.nKvHeads,
    head_dim: c.headDim,
    intermediate_size: c.expertDim,
    intermediate_size_mlp: c.ffnDim,
    num_local_experts: c.nExperts,
    num_experts_per_tok: c.topK,
    interleave_moe_layer_step: c.layers.findIndex((kind) => kind.moe) + 1,
    moe_layers: c.layers.flatMap((kind, i) => (kind.moe ? [i] : [])),
    no_rope_layers: c.layers.map((kind) => (kind.rope ? 1 : 0)),
    no_rope_layer_interval: 1 + (nope < 0 ? c.layers.length : nope), // transformers divides by it, whatever the list says
    layer_types: c.layers.map((kind) => (kind.chunked ? "chunked_attention" : "full_attention")),
    attention_chunk_size: c.attentionChunk,
    use_qk_norm: c.qkNorm,
    attn_temperature_tuning: c.temperature !== undefined,
    floor_scale: c.temperature?.floor ?? 8192,
    attn_scale: c.temperature?.scale ?? 0.1,
    rope_theta: c.ropeTheta,
    rope_scaling: scaling
      ? {
          rope_type: "llama3",
          factor: scaling.factor,
          low_freq_factor: scaling.lowFreqFactor,
          high_freq_factor: scaling.highFreqFactor,
          original_max_position_embeddings: scaling.originalContext,
        }
      : null,
    rms_norm_eps: c.normEps,
    hidden_act: "silu",
    attention_bias: false,
    attention_dropout: 0,
    max_position_embeddings: c.contextLength,
    tie_word_embeddings: c.tied,
    ...(c.tokens.bos !== undefined && { bos_token_id: c.tokens.bos }),
    eos_token_id: c.tokens.eos,
    pad_token_id: null,
    torch_dtype: dtype,
  };
  const { vision: v } = c;
  if (!v) return { architectures: ["Llama4ForCausalLM"], ...text };
  return {
    architectures: ["Llama4ForConditionalGeneration"],
    model_type: "llama4",
    ...(c.tokens.imageStart !== undefined && { boi_token_index: c.tokens.imageStart }),
    ...(c.tokens.imageEnd !== undefined && { eoi_token_index: c.tokens.imageEnd }),
    ...(c.tokens.patch !== undefined && { image_token_index: c.tokens.patch }),
    tie_word_embeddings: c.tied,
    torch_dtype: dtype,
    text_config: text,
    vision_config: {
      model_type: "llama4_vision_model",
      hidden_size: v.dim,
      num_hidden_layers: v.nLayers,
      num_attention_heads: v.nHeads,
      intermediate_size: v.ffnDim,
      image_size: v.imageSize,
      patch_size: v.patchSize,
      num_channels: v.nChannels,
      hidden_act: "gelu",
      norm_eps: v.normEps,
      rope_theta: v.ropeTheta,
      pixel_shuffle_ratio: 1 / v.shuffle,
      projector_input_dim: v.adapterDim,
      projector_output_dim: v.outputDim,
      vision_output_dim: v.outputDim,
      multi_modal_projector_bias: false,
      vision_feature_select_strategy: "default",
    },
  };
}
