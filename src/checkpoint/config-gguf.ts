// The metadata of GGUF files (gguf.md §2).

import {
  type LayerKind,
  type Llama4Config,
  layerKinds,
  publishedPreprocessing,
  type VisionConfig,
} from "../model/config.ts";
import { CheckpointError } from "../tensor/errors.ts";
import { checked, mostLayers, tokenId } from "./config.ts";
import { Fields, type Json } from "./json.ts";
import type { GgufValue } from "./writers.ts";

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
  const architecture = all.raw("general.architecture");
  if (architecture === "clip") throw all.wrong("general.architecture", '"llama4": a vision part goes with --mmproj');
  if (architecture !== "llama4") throw all.wrong("general.architecture", '"llama4"');
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

const ropeTheta = 10000; // hard-coded in llama.cpp, as the above

/** Reads the metadata of a mmproj file (gguf.md §4); the adapter's widths, `rows`, stand in its tensors only. */
export function visionFromGguf(
  metadata: GgufMetadata,
  rows: { readonly fc1: number; readonly fc2: number },
  { dim }: Llama4Config,
  name: string,
): VisionConfig {
  const all = new Fields(plain(metadata), name);
  const key = (rest: string) => `clip.vision.${rest}`;
  if (all.raw("general.architecture") !== "clip")
    throw all.wrong("general.architecture", '"clip": --mmproj takes the vision part of a model');
  const typeKey = all.has(key("projector_type")) ? key("projector_type") : "clip.projector_type";
  if (all.raw(typeKey) !== "llama4") throw all.wrong(typeKey, '"llama4"');
  if (all.raw("clip.use_silu") === true) throw all.wrong("clip.use_silu", "false: the encoder's activation is gelu");
  if (all.count(key("projection_dim"), { absent: dim }) !== dim)
    throw all.wrong(key("projection_dim"), `the text model's width, ${dim}; take the vision part of the same model`);
  const perChannel = (rest: string, usual: readonly number[]) => {
    const values = all.raw(key(rest)) ?? usual;
    if (
      !Array.isArray(values) ||
      values.length !== 3 ||
      values.some((x) => typeof x !== "number" || !Number.isFinite(x))
    )
      throw all.wrong(key(rest), "a number for each of 3 channels");
    return values.map(f32Of);
  };
  const mean = perChannel("image_mean", publishedPreprocessing.mean);
  const std = perChannel("image_std", publishedPreprocessing.std);
  if (std.some((value) => !(value > 0))) throw all.wrong(key("image_std"), "numbers above 0");
  return {
    dim: all.count(key("embedding_length")),
    nLayers: all.count(key("block_count"), { most: mostLayers }),
    nHeads: all.count(key("attention.head_count")),
    ffnDim: all.count(key("feed_forward_length")),
    imageSize: all.count(key("image_size"), { most: 65536 }),
    patchSize: all.count(key("patch_size")),
    nChannels: 3,
    normEps: f32Of(all.positive(key("attention.layer_norm_epsilon"), 1e-5)),
    ropeTheta,
    shuffle: all.count(key("projector.scale_factor"), { absent: 2 }),
    adapterDim: rows.fc1,
    outputDim: rows.fc2,
    preprocessing: { ...publishedPreprocessing, mean, std },
  };
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
  const { maxTiles, toMaxCanvas } = c.vision?.preprocessing ?? publishedPreprocessing;
  if (maxTiles !== publishedPreprocessing.maxTiles || toMaxCanvas)
    losses.push(
      `images of ${maxTiles} tiles${toMaxCanvas ? ", enlarged to the largest canvas" : ""}; it always takes 16`,
    );
  return losses;
}
