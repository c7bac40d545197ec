// What the three formats call a model's sizes and choices, and the one Llama4Config they all become (specification §1).

import {
  type LayerKind,
  type Llama4Config,
  layerKinds,
  presets,
  type RopeScaling,
  type VisionConfig,
} from "../model/config.ts";
import { CheckpointError, RequestError } from "../tensor/errors.ts";
import { Fields, type Json, show } from "./json.ts";
import type { GgufValue } from "./writers.ts";

export type PresetName = keyof typeof presets;

/** The published model of that name; RequestError names those that exist. */
export function preset(name: string): Llama4Config {
  if (!Object.hasOwn(presets, name))
    throw new RequestError(`${show(name)} is no preset; expected ${Object.keys(presets).join(", ")}`);
  return presets[name as PresetName];
}

/** Sizes must fit together before any tensor is looked at. */
function checked(c: Llama4Config, name: string): Llama4Config {
  const refuse = (what: string) => new CheckpointError(`${name}: ${what}`);
  if (c.nHeads % c.nKvHeads)
    throw refuse(`${c.nHeads} heads cannot share ${c.nKvHeads} key/value heads; expected a divisor`);
  if (c.headDim % 2) throw refuse(`the head dim is ${c.headDim}; expected an even number, rotated in pairs`);
  if (c.layers.some((kind) => kind.moe) && (c.nExperts < 1 || c.topK > c.nExperts))
    throw refuse(`${c.topK} of ${c.nExperts} experts for a token; expected at least one and no more than there are`);
  if (c.ropeDivisors && c.ropeDivisors.length !== c.headDim / 2)
    throw refuse(`${c.ropeDivisors.length} rope divisors for a head dim of ${c.headDim}; expected ${c.headDim / 2}`);
  const v = c.vision;
  if (v && (v.imageSize % (v.patchSize * v.shuffle) || v.dim % v.nHeads))
    throw refuse(
      `vision: an image of ${v.imageSize} in patches of ${v.patchSize} × ${v.shuffle}, ${v.nHeads} heads of ${v.dim}; expected whole numbers of each`,
    );
  return c;
}

const mostLayers = 4096; // so that a hostile count makes no long list

// ---- Hugging Face ----

// Absent keys have the values of transformers' Llama4TextConfig and Llama4VisionConfig: files leave equal ones out.

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
      nKvHeads: text.count("num_key_value_heads", { absent: text.has("num_attention_heads") ? nHeads : 8 }),
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

function temperatureOf(fields: Fields, key: string, absent: boolean): boolean {
  const value = fields.raw(key) ?? absent;
  if (typeof value !== "boolean" && !(typeof value === "number" && Number.isInteger(value) && value >= 0))
    throw fields.wrong(key, "true, false or a whole number (older files store 4 for true)");
  return Boolean(value);
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

function refuseOtherModels(text: Fields): void {
  if (text.flag("attention_bias", false))
    throw text.wrong("attention_bias", "false: Llama 4's text model has no biases");
  if ((text.raw("hidden_act") ?? "silu") !== "silu") throw text.wrong("hidden_act", '"silu"');
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

function tokenId(fields: Fields, key: string): number | undefined {
  return fields.has(key) ? fields.count(key, { least: 0 }) : undefined;
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
  };
}

/** `config.json` for a config; throws CheckpointError where it cannot say what the model is. */
export function toHuggingFace(c: Llama4Config, dtype: "float32" | "float16" | "bfloat16" = "bfloat16"): Json {
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
    no_rope_layer_interval: c.layers.findIndex((kind) => !kind.rope) + 1,
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

// ---- Meta ----

/** Reads `params.json`. What it leaves to the code stands in specification §1.4; -1 words means those of the embedding table. */
export function fromMeta(json: Json, { vocabRows }: { vocabRows: number }, name = "params.json"): Llama4Config {
  const top = new Fields(json, name);
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
  };
}

// ---- GGUF ----

// Hard-coded in llama.cpp and therefore in no official file (gguf.md §2).
const ggufDefaults = { chunk: 8192, interval: 4, floor: 8192, scale: 0.1 } as const;
const withoutQkNorm = 128; // experts: Maverick

export type GgufMetadata = ReadonlyMap<string, GgufValue>;

/** What the tensors of a GGUF file say beside its metadata. */
export interface GgufFacts {
  readonly vocabRows: number;
  readonly tied: boolean;
  /** The numbers of `rope_freqs.weight`. */
  readonly ropeFreqs?: Float32Array;
}

/** Reads GGUF metadata of the architecture `llama4`; keys that only other programs write are taken as hints. */
export function fromGguf(metadata: GgufMetadata, facts: GgufFacts, name = "GGUF metadata"): Llama4Config {
  const all = new Fields(plain(metadata), name);
  if (all.raw("general.architecture") !== "llama4") throw all.wrong("general.architecture", '"llama4"');
  const key = (rest: string) => `llama4.${rest}`;
  const count = (rest: string, limits?: { absent?: number; least?: number; most?: number }) =>
    all.count(key(rest), limits);
  const nLayers = count("block_count", { most: mostLayers });
  const [dim, nHeads] = [count("embedding_length"), count("attention.head_count")];
  const oneOf = (rest: string, absent?: number) => onlyValue(all, key(rest), nLayers, absent);
  const headDim = count("attention.key_length", { absent: Math.floor(dim / nHeads) });
  for (const same of ["attention.value_length", "rope.dimension_count"])
    if (count(same, { absent: headDim }) !== headDim) throw all.wrong(key(same), `the head dim, ${headDim}`);
  const experts = count("expert_count", { absent: 0, least: 0 });
  const layers = ggufLayers(all, nLayers, experts);
  const hasExperts = layers.some((kind) => kind.moe);
  const floor = all.positive(key("attention.temperature_length"), ggufDefaults.floor);
  const scale = all.raw(key("attention.temperature_scale")) ?? ggufDefaults.scale; // 0 = off
  if (typeof scale !== "number" || !(scale >= 0))
    throw all.wrong(key("attention.temperature_scale"), "a number from 0");
  const ffnDim = oneOf("feed_forward_length", hasExperts ? 1 : undefined);
  const ropeDivisors = ggufDivisors(all, facts.ropeFreqs, headDim);
  const tokens = listOfTexts(metadata.get("tokenizer.ggml.tokens"));
  return checked(
    {
      vocabSize: count("vocab_size", { absent: facts.vocabRows || tokens.length }),
      dim,
      nHeads,
      nKvHeads: oneOf("attention.head_count_kv", nHeads),
      headDim,
      ffnDim,
      expertDim: oneOf("expert_feed_forward_length", hasExperts ? undefined : ffnDim),
      nExperts: hasExperts ? experts : 0,
      topK: hasExperts ? count("expert_used_count") : 1,
      layers,
      attentionChunk: count("attention.chunk_size", { absent: ggufDefaults.chunk }),
      normEps: f32Of(all.positive(key("attention.layer_norm_rms_epsilon"))),
      qkNorm: all.flag(key("use_qk_norm"), experts !== withoutQkNorm),
      ropeTheta: ggufTheta(all, layers),
      ...(ropeDivisors && { ropeDivisors }),
      ...(scale > 0 && { temperature: { floor, scale: f32Of(scale) } }),
      tied: facts.tied,
      contextLength: count("context_length"),
      tokens: ggufTokens(all, tokens),
    },
    name,
  );
}

function plain(metadata: GgufMetadata): Json {
  const small = [...metadata].filter(([key]) => !/^tokenizer\.ggml\.(tokens|merges|scores|token_type)$/.test(key));
  return Object.fromEntries(small.map(([key, entry]) => [key, plainValue(entry)]));
}

function plainValue(entry: GgufValue): unknown {
  if (entry.type !== "array") return typeof entry.value === "bigint" ? Number(entry.value) : entry.value;
  const values = Array.from(entry.values, (value) => (typeof value === "bigint" ? Number(value) : value));
  return entry.of === "bool" ? values.map(Number) : values;
}

function listOfTexts(entry: GgufValue | undefined): readonly string[] {
  return entry?.type === "array" && entry.of === "string" ? (entry.values as readonly string[]) : []; // as `of` says
}

/** The shortest decimal that is the same float32: 1e-5 rather than 0.000009999999747. */
function f32Of(value: number): number {
  for (let digits = 1; digits < 9; digits++) {
    const short = Number(value.toPrecision(digits));
    if (Math.fround(short) === Math.fround(value)) return short;
  }
  return value;
}

/** One number for all layers; a list may leave out layers by 0. */
function onlyValue(all: Fields, key: string, nLayers: number, absent?: number): number {
  if (!Array.isArray(all.raw(key))) return all.count(key, absent === undefined ? {} : { absent });
  const values = new Set(all.counts(key).filter((value) => value > 0));
  if (values.size !== 1 || all.counts(key).length !== nLayers)
    throw all.wrong(key, `one number, or the same for each of ${nLayers} layers`);
  return [...values][0]!;
}

function ggufLayers(all: Fields, nLayers: number, experts: number): LayerKind[] {
  const key = (rest: string) => `llama4.${rest}`;
  const flags = (name: string) => {
    const list = all.counts(name, { most: 1 });
    if (list.length !== nLayers) throw all.wrong(name, `one flag for each of ${nLayers} layers`);
    return list.map(Boolean);
  };
  const step = experts === 0 ? 0 : all.count(key("interleave_moe_layer_step"), { least: 0 });
  const usual = layerKinds(nLayers, ggufDefaults.interval, step);
  const moe = all.has(key("moe_layers")) ? flags(key("moe_layers")) : usual.map((kind) => kind.moe);
  const everywhere = all.raw(key("attention.sliding_window")) === 0; // rotary in every layer, no chunks
  const rope = all.has(key("rope.layers")) ? flags(key("rope.layers")) : usual.map((kind) => everywhere || kind.rope);
  const patternKey = key("attention.sliding_window_pattern");
  const pattern = all.raw(patternKey);
  const chunked = everywhere
    ? rope.map(() => false)
    : pattern === undefined
      ? usual.map((kind) => kind.chunked)
      : Array.isArray(pattern)
        ? flags(patternKey)
        : layerKinds(nLayers, all.count(patternKey, { least: 0 }), 0).map((kind) => kind.chunked);
  return usual.map((_, i) => ({ rope: rope[i]!, chunked: chunked[i]!, moe: moe[i]! }));
}

function ggufTheta(all: Fields, layers: readonly LayerKind[]): number {
  const theta = f32Of(all.positive("llama4.rope.freq_base", 10000));
  const local = f32Of(all.positive("llama4.rope.freq_base_swa", theta)); // of chunked layers
  const kinds = new Set(layers.filter((kind) => kind.rope).map((kind) => (kind.chunked ? local : theta)));
  if (kinds.size > 1) throw all.wrong("llama4.rope.freq_base_swa", `${theta}, as in the rotary layers without chunks`);
  return [...kinds][0] ?? theta;
}

function ggufDivisors(all: Fields, ropeFreqs: Float32Array | undefined, headDim: number): number[] | undefined {
  const type = all.raw("llama4.rope.scaling.type") ?? "none";
  if (type !== "none" && type !== "linear") throw all.wrong("llama4.rope.scaling.type", '"none" or "linear"');
  const linear = type === "linear" ? all.positive("llama4.rope.scaling.factor", 1) : 1;
  const divisors = Array.from({ length: headDim / 2 }, (_, j) => linear * (ropeFreqs ? ropeFreqs[j]! : 1));
  if (!divisors.every((divisor) => Number.isFinite(divisor) && divisor > 0))
    throw new CheckpointError("rope_freqs.weight holds a divisor that is not above 0; the file is corrupted");
  return divisors.every((divisor) => divisor === 1) ? undefined : divisors;
}

// Files name at most one end token; generation stops at each of these (gguf.md §2).
const endTexts = ["<|end_of_text|>", "<|eom|>", "<|eot|>"];

function ggufTokens(all: Fields, tokens: readonly string[]): Llama4Config["tokens"] {
  const special = new Map<string, number>();
  const wanted = new Set([...endTexts, "<|image_start|>", "<|image_end|>", "<|patch|>"]);
  for (const [id, text] of tokens.entries()) if (wanted.has(text)) special.set(text, id);
  const named = ["eos", "eot", "eom"].map((kind) => tokenId(all, `tokenizer.ggml.${kind}_token_id`));
  const eos = [...named, ...endTexts.map((text) => special.get(text))].filter((id) => id !== undefined);
  const ids = [
    ["bos", tokenId(all, "tokenizer.ggml.bos_token_id")],
    ["imageStart", special.get("<|image_start|>")],
    ["imageEnd", special.get("<|image_end|>")],
    ["patch", special.get("<|patch|>")],
  ].filter(([, id]) => id !== undefined);
  return { eos: [...new Set(eos)].sort((a, b) => a - b), ...Object.fromEntries(ids) };
}

/** The metadata that describe the text model. Hints that llama.cpp ignores are added where its constants differ. */
export function toGguf(c: Llama4Config): Map<string, GgufValue> {
  const u32 = (value: number): GgufValue => ({ type: "u32", value });
  const f32 = (value: number): GgufValue => ({ type: "f32", value });
  const flags = (values: readonly boolean[]): GgufValue => ({ type: "array", of: "bool", values });
  const moeStep = c.layers.findIndex((kind) => kind.moe) + 1;
  const usual = layerKinds(c.layers.length, ggufDefaults.interval, moeStep);
  const differs = (key: keyof LayerKind) => c.layers.some((kind, i) => kind[key] !== usual[i]![key]);
  const everywhere = c.layers.every((kind) => kind.rope && !kind.chunked);
  const entries: [string, GgufValue][] = [
    ["block_count", u32(c.layers.length)],
    ["context_length", u32(c.contextLength)],
    ["embedding_length", u32(c.dim)],
    ["feed_forward_length", u32(c.ffnDim)],
    ["expert_feed_forward_length", u32(c.expertDim)],
    ["attention.head_count", u32(c.nHeads)],
    ["attention.head_count_kv", u32(c.nKvHeads)],
    ["attention.key_length", u32(c.headDim)],
    ["attention.value_length", u32(c.headDim)],
    ["attention.layer_norm_rms_epsilon", f32(c.normEps)],
    ["rope.freq_base", f32(c.ropeTheta)],
    ["rope.dimension_count", u32(c.headDim)],
    ["expert_count", u32(Math.max(1, c.nExperts))], // llama.cpp wants one even where no layer has experts
    ["expert_used_count", u32(c.topK)],
    ["interleave_moe_layer_step", u32(moeStep)],
    ["vocab_size", u32(c.vocabSize)],
  ];
  if (everywhere) entries.push(["attention.sliding_window", u32(0)]);
  else {
    if (differs("rope")) entries.push(["rope.layers", flags(c.layers.map((kind) => kind.rope))]);
    if (differs("chunked"))
      entries.push(["attention.sliding_window_pattern", flags(c.layers.map((kind) => kind.chunked))]);
  }
  if (differs("moe")) entries.push(["moe_layers", flags(c.layers.map((kind) => kind.moe))]);
  if (c.attentionChunk !== ggufDefaults.chunk) entries.push(["attention.chunk_size", u32(c.attentionChunk)]);
  if (c.qkNorm !== (Math.max(1, c.nExperts) !== withoutQkNorm))
    entries.push(["use_qk_norm", { type: "bool", value: c.qkNorm }]);
  const { floor, scale } = c.temperature ?? { floor: ggufDefaults.floor, scale: 0 };
  if (floor !== ggufDefaults.floor) entries.push(["attention.temperature_length", u32(floor)]);
  if (scale !== ggufDefaults.scale) entries.push(["attention.temperature_scale", f32(scale)]);
  return new Map([
    ["general.architecture", { type: "string", value: "llama4" }],
    ...entries.map(([key, value]) => [`llama4.${key}`, value] as const),
  ]);
}

/** What llama.cpp would get wrong about this model, a phrase each; empty where GGUF says it all (gguf.md §2). */
export function ggufLosses(c: Llama4Config): string[] {
  const losses: string[] = [];
  const n = c.layers.length;
  const moeStep = c.layers.findIndex((kind) => kind.moe) + 1;
  const usual = layerKinds(n, ggufDefaults.interval, moeStep);
  const { floor, scale } = c.temperature ?? {};
  const hasNope = c.layers.some((kind) => !kind.rope);
  if (n < ggufDefaults.interval) losses.push(`${n} layers; it aborts below ${ggufDefaults.interval}`);
  if (c.layers.some((kind, i) => kind.rope !== usual[i]!.rope))
    losses.push("layers without rotation other than every 4th");
  if (c.layers.some((kind, i) => kind.chunked !== usual[i]!.chunked))
    losses.push("chunked layers other than 3 of every 4");
  if (c.layers.some((kind, i) => kind.moe !== usual[i]!.moe)) losses.push("expert layers at irregular places");
  if (c.attentionChunk !== ggufDefaults.chunk && c.layers.some((kind) => kind.chunked))
    losses.push(`an attention chunk of ${c.attentionChunk}; it always takes ${ggufDefaults.chunk}`);
  if (hasNope && !c.temperature) losses.push("no attention temperature; it always tunes");
  if (hasNope && c.temperature && (floor !== ggufDefaults.floor || scale !== ggufDefaults.scale))
    losses.push(
      `temperature floor ${floor} and scale ${scale}; it always takes ${ggufDefaults.floor} and ${ggufDefaults.scale}`,
    );
  if (c.qkNorm !== (Math.max(1, c.nExperts) !== withoutQkNorm))
    losses.push(
      `qk-norm ${c.qkNorm ? "on" : "off"} with ${c.nExperts} experts; it normalises unless there are ${withoutQkNorm}`,
    );
  return losses;
}

/** The numbers of `rope_freqs.weight`, or undefined where frequencies are not divided. */
export function ropeFreqs(c: Llama4Config): Float32Array | undefined {
  if (c.ropeDivisors) return Float32Array.from(c.ropeDivisors);
  return c.ropeScaling && Float32Array.from(divisors(c.ropeScaling, c.ropeTheta, c.headDim));
}

// The quotient of plain and stretched frequency (specification §3.4; the model's own rule stands in model/rope.ts).
function divisors(s: RopeScaling, theta: number, headDim: number): number[] {
  return Array.from({ length: headDim / 2 }, (_, j) => {
    const wavelength = 2 * Math.PI * theta ** ((2 * j) / headDim);
    if (wavelength < s.originalContext / s.highFreqFactor) return 1;
    if (wavelength > s.originalContext / s.lowFreqFactor) return s.factor;
    if (s.highFreqFactor === s.lowFreqFactor) return 1;
    const t = (s.originalContext / wavelength - s.lowFreqFactor) / (s.highFreqFactor - s.lowFreqFactor);
    return 1 / ((1 - t) / s.factor + t);
  });
}

/** The llama3 scaling with these divisors: published models have low 1 and high 1 or 4, contexts are powers of 2. */
function scalingOf(wanted: readonly number[], theta: number, headDim: number): RopeScaling {
  const factor = Math.max(...wanted);
  for (const highFreqFactor of [1, 4])
    for (const originalContext of [8192, ...Array.from({ length: 25 }, (_, i) => 2 ** i)]) {
      const scaling = { factor, lowFreqFactor: 1, highFreqFactor, originalContext };
      if (divisors(scaling, theta, headDim).every((d, j) => Math.abs(d - wanted[j]!) <= 1e-5 * d)) return scaling;
    }
  throw new CheckpointError(
    "the rope divisors follow no llama3 scaling, and config.json has no other word for them; keep the model as GGUF",
  );
}
