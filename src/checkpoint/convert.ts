// One checkpoint into another: GGUF in one of the mixes, or a folder in Hugging Face's layout. Nothing is held but the
// blocks that are being recoded (recode.ts), so a checkpoint may have any size.

import { existsSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import type { Llama4Config, VisionConfig } from "../model/config.ts";
import { type Block, mapParameters, type Parameters } from "../model/parameters.ts";
import { type DType, isQuantized } from "../tensor/dtype.ts";
import { CheckpointError, RequestError } from "../tensor/errors.ts";
import type { Shape, TensorView } from "../tensor/tensor.ts";
import { ggufLosses, toGguf } from "./config-gguf.ts";
import { toHuggingFace } from "./config-hugging-face.ts";
import { fileTypes, isPlain, type Mix, type Place, type PlainMix, storedType } from "./mix.ts";
import { ggufNames } from "./names-gguf.ts";
import { huggingFaceTensors } from "./names-hugging-face.ts";
import { ggufVision, listVision, visionShapes } from "./names-vision.ts";
import { type Checkpoint, mmprojName } from "./open.ts";
import { toPreprocessorConfig } from "./preprocessor-config.ts";
import { type Quantizer, recoded, recodedTogether, referenceQuantizer, shareRows, turned } from "./recode.ts";
import { ropeFreqs } from "./rope-divisors.ts";
import {
  allBytes,
  type GgufValue,
  type OutTensor,
  type OutTensors,
  type WriteOptions,
  writeGguf,
  writeHuggingFace,
} from "./writers.ts";

/** A tokenizer as GGUF's keys `tokenizer.ggml.*` say it. */
export interface Vocabulary {
  readonly model: string;
  readonly pre: string;
  readonly tokens: readonly string[];
  readonly tokenTypes: ArrayLike<number>;
  readonly merges?: readonly string[] | undefined;
  readonly bos?: number | undefined;
  readonly eos?: number | undefined;
  readonly pad?: number | undefined;
}

export interface ConvertOptions extends WriteOptions {
  /** Default: as the input's matrices are stored. A folder holds f32, f16 or bf16. */
  readonly type?: Mix | undefined;
  readonly quantizer?: Quantizer;
  /** For a .gguf file; a GGUF input's own wins. Without one the file says that it has none. */
  readonly vocabulary?: Vocabulary | undefined;
  /** For a folder: texts to stand beside config.json, such as tokenizer.json. */
  readonly files?: Readonly<Record<string, string>>;
  /** Write what llama.cpp would misread, with hints that only this program obeys. */
  readonly allowLossy?: boolean;
  readonly onWarning?: (message: string) => void;
}

export interface Converted {
  readonly type: Mix;
  /** What was written: the folder, or the file and, with a vision encoder, the one beside it. */
  readonly paths: readonly string[];
  /** Of all tensors. */
  readonly bytes: number;
}

/** Writes `input` to `out`: a .gguf file, else a folder. Throws CheckpointError for what the format cannot say. */
export async function convert(input: Checkpoint, out: string, options: ConvertOptions = {}): Promise<Converted> {
  const isGguf = out.endsWith(".gguf");
  const type = options.type ?? typeOf(input, isGguf);
  return isGguf ? convertToGguf(input, out, type, options) : convertToFolder(input, out, type, options);
}

function typeOf({ parameters }: Checkpoint, isGguf: boolean): Mix {
  const { dtype } = parameters.tokEmbeddings;
  if (dtype === "f32" || dtype === "f16" || dtype === "bf16") return dtype;
  if (isGguf) throw new RequestError(`the input is stored as ${dtype}; say with a type what it should become`);
  return "bf16";
}

// ---- to GGUF ----

async function convertToGguf(input: Checkpoint, out: string, type: Mix, options: ConvertOptions): Promise<Converted> {
  const { config } = input;
  const { allowLossy = false, onWarning } = options;
  const losses = ggufLosses(config);
  if (losses.length > 0 && !allowLossy)
    throw new CheckpointError(
      `${basename(out)}: GGUF has no word that llama.cpp obeys for ${losses.join("; ")}; ` +
        "write a folder instead, or pass --allow-lossy for a file that only this program reads rightly",
    );
  for (const loss of losses) onWarning?.(`llama.cpp will misread ${basename(out)}: ${loss}`);
  const text = ggufText(input, type, options);
  const vision = visionTensors(input, type, options);
  const [textBytes, visionBytes] = [allBytes(text), allBytes(vision)];
  const part = (before: number): WriteOptions => ({
    ...(options.signal && { signal: options.signal }),
    onProgress: (done) => options.onProgress?.(before + done, textBytes + visionBytes),
  });
  const writeText = () => writeGguf(out, textMetadata(input, out, type, options), text, part(visionBytes));
  const beside = join(dirname(out), mmprojName(basename(out)));
  if (!config.vision) {
    if (existsSync(beside))
      throw new RequestError(
        `${beside} would be taken for the vision part of ${out}, which has none; move it, or choose another name`,
      );
    await writeText();
    return { type, paths: [out], bytes: textBytes };
  }
  // Both are whole before either takes its place: half a model would pass for a text model.
  const metadata = visionMetadata(config, config.vision, out, visionType(input, type));
  await writeGguf(beside, metadata, vision, { ...part(0), whenWhole: writeText });
  return { type, paths: [out, beside], bytes: textBytes + visionBytes };
}

/** The text model's tensors, in the order of the tree. */
function ggufText({ config, parameters }: Checkpoint, type: Mix, { quantizer = referenceQuantizer }: ConvertOptions) {
  const names = ggufNames(config);
  const [views, texts, places] = [listed(parameters), listed(names.parameters), listed(roles(parameters))];
  const tensors = views.slice(0, config.tied ? -1 : undefined).map((view, i) => {
    const { shape } = view;
    return { view, name: texts[i]!, dtype: storedType(type, { ...places[i]!, columns: shape.at(-1)! }, config), shape };
  });
  const divisors = ropeFreqs(config);
  return [
    ...grouped(tensors, ({ view: a }, { view: b }) => shareRows(a, b)).map((group): OutTensors => {
      const [sources, targets] = [group.map(({ view }) => view), group.map(({ dtype }) => dtype)];
      return { tensors: group, chunks: () => recodedTogether(sources, targets, quantizer) };
    }),
    ...(divisors ? [numbersTensor(names.ropeFreqs, divisors)] : []),
  ];
}

/** Neighbours that belong to the first of them, together. */
function grouped<T>(items: readonly T[], belong: (first: T, item: T) => boolean): T[][] {
  const groups: T[][] = [];
  for (const item of items) {
    const group = groups.at(-1);
    if (group && belong(group[0]!, item)) group.push(item);
    else groups.push([item]);
  }
  return groups;
}

function listed<W>(parameters: Parameters<W>): W[] {
  const list: W[] = [];
  mapParameters(parameters, (weight) => list.push(weight));
  return list;
}

type RoleInLayer = Pick<Place, "role" | "layer">;

function roles({ layers }: Parameters<unknown>): Parameters<RoleInLayer> {
  const at = (role: Place["role"], layer?: number): RoleInLayer => ({ role, layer });
  const block = ({ ffn }: Block<unknown>, i: number): Block<RoleInLayer> => {
    const swiglu = { w1: at("w1", i), w2: at("w2", i), w3: at("w3", i) };
    const experts = { gate: swiglu.w1, up: swiglu.w3, down: swiglu.w2 };
    return {
      attentionNorm: at("attentionNorm", i),
      wq: at("wq", i),
      wk: at("wk", i),
      wv: at("wv", i),
      wo: at("wo", i),
      ffnNorm: at("ffnNorm", i),
      ffn: "router" in ffn ? { router: at("router", i), experts, shared: swiglu } : swiglu,
    };
  };
  return { tokEmbeddings: at("tokEmbeddings"), layers: layers.map(block), norm: at("norm"), output: at("output") };
}

function numbersTensor(name: string, numbers: Float32Array): OutTensor {
  const bytes = new Uint8Array(numbers.buffer, numbers.byteOffset, numbers.byteLength);
  return {
    name,
    dtype: "f32",
    shape: [numbers.length],
    async *chunks() {
      yield bytes;
    },
  };
}

/** Quantizers' blocks do not divide vision's rows (588, 1408): matrices keep 16 bits, the rest 32. */
function visionTensors(input: Checkpoint, type: Mix, { quantizer = referenceQuantizer }: ConvertOptions): OutTensor[] {
  const { config, vision } = input;
  if (!vision) return [];
  const names = ggufVision(vision.layers.length);
  const [shapes, views, matrixType] = [listVision(visionShapes(config)), listVision(vision), visionType(input, type)];
  return listVision(names).map((name, i): OutTensor => {
    const shape = shapes[i]!;
    const dtype = shape.length > 1 && name !== names.positionEmbedding ? matrixType : "f32";
    return { name, dtype, shape, chunks: () => recoded(views[i]!, dtype, quantizer) };
  });
}

function visionType({ vision }: Checkpoint, type: Mix): PlainMix {
  if (isPlain(type)) return type;
  return vision?.patchEmbedding.dtype === "bf16" ? "bf16" : "f16";
}

const text = (value: string): GgufValue => ({ type: "string", value });
const u32 = (value: number): GgufValue => ({ type: "u32", value });

function generalMetadata(out: string, kind: string, fileType: number): [string, GgufValue][] {
  return [
    ["general.type", text(kind)],
    ["general.name", text(basename(out, ".gguf"))],
    ["general.file_type", u32(fileType)],
    ["general.quantization_version", u32(2)],
  ];
}

function textMetadata({ config, metadata, chatTemplate }: Checkpoint, out: string, type: Mix, options: ConvertOptions) {
  const own = [...(metadata ?? [])].filter(([key]) => key.startsWith("tokenizer."));
  const template: [string, GgufValue][] =
    chatTemplate === undefined ? [] : [["tokenizer.chat_template", text(chatTemplate)]];
  return new Map([
    ...toGguf(config),
    ...generalMetadata(out, "model", fileTypes[type]),
    ...(own.length > 0 ? own : [...vocabularyMetadata(config, options.vocabulary), ...template]),
  ]);
}

const [CONTROL, UNUSED] = [3, 5]; // kinds of tokens

function vocabularyMetadata(c: Llama4Config, vocabulary: Vocabulary | undefined): [string, GgufValue][] {
  if (!vocabulary) return [["tokenizer.ggml.model", text("none")]]; // llama.cpp's word for a model without one
  const { model, pre, tokens, tokenTypes, merges, pad } = vocabulary;
  if (tokens.length > c.vocabSize)
    throw new CheckpointError(
      `the tokenizer has ${tokens.length} tokens and the model ${c.vocabSize}; expected no more`,
    );
  const missing = Array.from({ length: c.vocabSize - tokens.length }, (_, i) => `[PAD${tokens.length + i}]`);
  const types = Int32Array.from({ length: c.vocabSize }, (_, i) => tokenTypes[i] ?? UNUSED);
  const [bos, eos] = [vocabulary.bos ?? c.tokens.bos, vocabulary.eos ?? c.tokens.eos.at(-1)];
  const ids = Object.entries({ bos, eos, padding: pad, eot: special("<|eot|>"), eom: special("<|eom|>") });
  return [
    ["tokenizer.ggml.model", text(model)],
    ["tokenizer.ggml.pre", text(pre)],
    ["tokenizer.ggml.tokens", { type: "array", of: "string", values: [...tokens, ...missing] }],
    ["tokenizer.ggml.token_type", { type: "array", of: "i32", values: types }],
    ...(merges
      ? [["tokenizer.ggml.merges", { type: "array", of: "string", values: merges }] as [string, GgufValue]]
      : []),
    ...ids.flatMap(([kind, id]): [string, GgufValue][] =>
      id === undefined ? [] : [[`tokenizer.ggml.${kind}_token_id`, u32(id)]],
    ),
    ["tokenizer.ggml.add_bos_token", { type: "bool", value: bos !== undefined }],
  ];

  function special(name: string): number | undefined {
    const id = tokens.lastIndexOf(name);
    return id >= 0 && tokenTypes[id] === CONTROL ? id : undefined;
  }
}

/** Specification gguf.md §4. */
function visionMetadata({ dim }: Llama4Config, v: VisionConfig, out: string, type: Mix): Map<string, GgufValue> {
  const { mean, std } = v.preprocessing;
  const numbers = (values: readonly number[]): GgufValue => ({ type: "array", of: "f32", values });
  const yes: GgufValue = { type: "bool", value: true };
  return new Map([
    ["general.architecture", text("clip")],
    ...generalMetadata(out, "mmproj", fileTypes[type]),
    ["clip.has_vision_encoder", yes],
    ["clip.projector_type", text("llama4")],
    ["clip.use_gelu", yes],
    ["clip.vision.image_size", u32(v.imageSize)],
    ["clip.vision.patch_size", u32(v.patchSize)],
    ["clip.vision.embedding_length", u32(v.dim)],
    ["clip.vision.feed_forward_length", u32(v.ffnDim)],
    ["clip.vision.block_count", u32(v.nLayers)],
    ["clip.vision.attention.head_count", u32(v.nHeads)],
    ["clip.vision.attention.layer_norm_epsilon", { type: "f32", value: v.normEps }],
    ["clip.vision.projection_dim", u32(dim)],
    ["clip.vision.image_mean", numbers(mean)],
    ["clip.vision.image_std", numbers(std)],
    ["clip.vision.projector.scale_factor", u32(v.shuffle)],
  ]);
}

// ---- to a folder ----

const torchNames = { f32: "float32", f16: "float16", bf16: "bfloat16" } as const;

async function convertToFolder(input: Checkpoint, out: string, type: Mix, options: ConvertOptions): Promise<Converted> {
  if (type !== "f32" && type !== "f16" && type !== "bf16")
    throw new RequestError(`a folder cannot hold ${type}; take f32, f16 or bf16, or a name that ends in .gguf`);
  const tensors = folderTensors(input, type, options);
  const { vision } = input.config;
  const json = (contents: object) => `${JSON.stringify(contents, null, 2)}\n`;
  const files = {
    ...options.files,
    "config.json": json(toHuggingFace(input.config, torchNames[type])),
    ...(vision && { "preprocessor_config.json": json(toPreprocessorConfig(vision)) }),
  };
  await writeHuggingFace(out, files, tensors, options);
  return { type, paths: [out], bytes: allBytes(tensors) };
}

/** Hugging Face's tensors, all of one dtype; what they are made of is listed in the order of their names. */
export function folderTensors(
  { config, parameters, vision }: Pick<Checkpoint, "config" | "parameters" | "vision">,
  dtype: DType,
  { quantizer = referenceQuantizer }: Pick<ConvertOptions, "quantizer"> = {},
): OutTensor[] {
  const asIs = (view: TensorView) => ({ shape: view.shape, chunks: () => recoded(view, dtype, quantizer) });
  const fused = (...views: readonly TensorView[]) => {
    const [E, , columns] = views[0]!.shape as [number, number, number];
    const shape: Shape = [E, columns, views.reduce((sum, view) => sum + view.shape[1]!, 0)];
    return { shape, chunks: () => turned(views, dtype, quantizer) };
  };
  const swiglu = ({ w1, w2, w3 }: { w1: TensorView; w2: TensorView; w3: TensorView }) => [w1, w3, w2].map(asIs);
  const block = ({ ffn, ...b }: Block<TensorView>) => [
    ...[b.attentionNorm, b.wq, b.wk, b.wv, b.wo, b.ffnNorm].map(asIs),
    ...("router" in ffn
      ? [asIs(ffn.router), fused(ffn.experts.gate, ffn.experts.up), fused(ffn.experts.down), ...swiglu(ffn.shared)]
      : swiglu(ffn)),
  ];
  const contents = [
    asIs(parameters.tokEmbeddings),
    ...parameters.layers.flatMap(block),
    asIs(parameters.norm),
    ...(config.tied ? [] : [asIs(parameters.output)]),
    ...(vision ? listVision(vision).map(asIs) : []),
  ];
  return huggingFaceTensors(config).map(({ name, shape }, i) => {
    const { shape: found, chunks } = contents[i]!;
    if (found.join() !== shape.join()) throw new RangeError(`${name}: [${found}] where [${shape}] belongs`);
    return { name, dtype, shape, chunks };
  });
}

/** True where the input has lost precision already, so that another quantization adds to its errors. */
export function isRequantized({ parameters }: Checkpoint, type: Mix): boolean {
  return listed(parameters).some(({ dtype }) => isQuantized(dtype) && type !== "f32" && type !== dtype);
}
