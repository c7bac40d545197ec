// Opens a checkpoint of any format: what the model is, where its weights stand, and the raw material of its tokenizer.

import { existsSync } from "node:fs";
import { readdir, readFile, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import type { Llama4Config } from "../model/config.ts";
import type { Parameters, VisionParameters } from "../model/parameters.ts";
import { dequantize } from "../tensor/block-formats.ts";
import { dtypes } from "../tensor/dtype.ts";
import { CheckpointError, RequestError } from "../tensor/errors.ts";
import { elementCount, storedBytes, type TensorView } from "../tensor/tensor.ts";
import { merged, readAdapter } from "./adapter.ts";
import { checked } from "./config.ts";
import { fromGguf, type GgufMetadata, visionFromGguf } from "./config-gguf.ts";
import { fromHuggingFace, readGenerationConfig } from "./config-hugging-face.ts";
import { fromMeta } from "./config-meta.ts";
import type { Bound } from "./found.ts";
import { readGguf, splitNames } from "./gguf.ts";
import { Fields, isObject, type Json, parseObject } from "./json.ts";
import { adapterRows, bindGguf, bindMmproj, ggufVocabRows, hasGgufOutput, ropeFreqsName } from "./names-gguf.ts";
import { bindHuggingFace, withoutPrefix } from "./names-hugging-face.ts";
import { bindMeta, metaVocabRows } from "./names-meta.ts";
import { readPreprocessorConfig } from "./preprocessor-config.ts";
import { readIndex, readSafetensors } from "./safetensors.ts";
import { type FileSource, openFile } from "./source.ts";

/** What a checkpoint says about its tokenizer; prompt/ makes the tokenizer. */
export type TokenizerMaterial =
  | { readonly kind: "tiktoken"; readonly bytes: Uint8Array }
  | { readonly kind: "huggingface"; readonly json: string }
  | {
      readonly kind: "gguf";
      readonly model: string;
      readonly pre: string;
      readonly tokens: readonly string[];
      readonly tokenTypes: ArrayLike<number>;
      readonly merges?: readonly string[];
    };

export interface Checkpoint {
  readonly format: "huggingface" | "meta" | "gguf";
  readonly path: string;
  readonly config: Llama4Config;
  readonly parameters: Parameters<TensorView>;
  /** There where `config.vision` is. */
  readonly vision?: VisionParameters<TensorView>;
  /** Every tensor of every file, the vision encoder's included. */
  readonly tensors: readonly TensorView[];
  readonly tokenizer?: TokenizerMaterial;
  /** The checkpoint's own Jinja template. */
  readonly chatTemplate?: string;
  /** Sampling that the model was tuned for. */
  readonly defaults: { readonly temperature?: number; readonly topP?: number };
  /** A GGUF file's own metadata. */
  readonly metadata?: GgufMetadata;
  /** Of all files that hold tensors. */
  readonly totalBytes: number;
  /** Closes the files; views cannot be read any more. */
  close(): Promise<void>;
}

export interface CheckpointOptions {
  /** The vision part of a GGUF model. Default: the file `mmproj-<name>` beside it, as `convert` writes it, if there is one; of a split, the name without its part's number too. */
  readonly mmproj?: string | undefined;
  /** A folder with an adapter in PEFT's layout, which goes into the weights: see adapter.ts. For Hugging Face folders. */
  readonly adapter?: string | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Opens a folder in Hugging Face's or Meta's layout, or a `.gguf` file (of a split, any part). */
export async function openCheckpoint(path: string, options: CheckpointOptions = {}): Promise<Checkpoint> {
  const { signal } = options;
  signal?.throwIfAborted();
  const files: FileSource[] = [];
  const close = async () => {
    await Promise.all(files.splice(0).map((file) => file.close()));
  };
  const open = async (name: string) => {
    signal?.throwIfAborted();
    const file = await openFile(name);
    files.push(file);
    return file;
  };
  try {
    const contents = await openByKind(path, options, open);
    return { ...contents, path, totalBytes: files.reduce((sum, file) => sum + file.byteLength, 0), close };
  } catch (error) {
    await close();
    const { syscall, message } = error as NodeJS.ErrnoException; // of the file system's errors alone
    throw syscall === undefined ? error : new CheckpointError(`${path} cannot be read: ${message}`, { cause: error });
  }
}

type Open = (path: string) => Promise<FileSource>;
type Contents = Omit<Checkpoint, "path" | "totalBytes" | "close">;

async function openByKind(path: string, { mmproj, adapter }: CheckpointOptions, open: Open): Promise<Contents> {
  const found = await stat(path).catch(() => undefined);
  if (!found)
    throw new CheckpointError(
      `${path}: no such file or folder; expected a folder with config.json or params.json, or a .gguf file`,
    );
  if (adapter !== undefined && !existsSync(join(path, "config.json")))
    throw new RequestError(
      `the adapter ${adapter} goes with a folder in Hugging Face's layout, and ${path} is none; take the model that it was trained on, and convert what comes out`,
    );
  if (found.isFile()) {
    if (path.endsWith(".gguf")) return openGguf(path, mmproj, open);
    throw new CheckpointError(`${path} is a file of an unknown kind; expected a .gguf file, or the folder it lies in`);
  }
  if (!found.isDirectory()) throw new CheckpointError(`${path} is a device; expected a folder or a .gguf file`);
  if (mmproj !== undefined)
    throw new RequestError(
      `--mmproj is ${mmproj}, and ${path} is a folder, where a vision part has its place among the weights; leave it out`,
    );
  if (existsSync(join(path, "config.json"))) return openHuggingFace(path, adapter, open);
  if (existsSync(join(path, "params.json"))) return openMeta(path, open);
  const inside = await readdir(path);
  const ggufs = inside.filter((name) => name.endsWith(".gguf"));
  const isRun = existsSync(join(path, "model", "config.json")); // of `llama4 train`
  const hint =
    ggufs.length > 0
      ? `; it holds ${ggufs.slice(0, 3).join(", ")}: name the file`
      : isRun
        ? `; ${join(path, "model")} is one: name that`
        : "";
  throw new CheckpointError(
    `${path}: neither config.json (Hugging Face) nor params.json (Meta) is in this folder${hint}`,
  );
}

const largestText = 256 * 2 ** 20; // tokenizer.json of the published models has 28 MB

async function readText(path: string): Promise<string> {
  const { size } = await stat(path);
  if (size > largestText)
    throw new CheckpointError(`${path} has ${size} bytes; expected at most ${largestText} of text`);
  return readFile(path, "utf8");
}

async function readJson(path: string): Promise<Json> {
  return parseObject(await readText(path), basename(path));
}

async function ifThere<T>(path: string, read: (path: string) => Promise<T>): Promise<T | undefined> {
  return existsSync(path) ? read(path) : undefined;
}

// ---- Hugging Face ----

async function openHuggingFace(folder: string, adapterFolder: string | undefined, open: Open): Promise<Contents> {
  const config = await withPreprocessing(fromHuggingFace(await readJson(join(folder, "config.json"))), folder);
  const generation = await ifThere(join(folder, "generation_config.json"), readJson);
  const said = generation && readGenerationConfig(generation);
  const tensors = await huggingFaceFiles(folder, open);
  const adapter =
    adapterFolder === undefined
      ? undefined
      : await readAdapter(adapterFolder, new Map(tensors.map(({ name, shape }) => [withoutPrefix(name), shape])));
  const chatTemplate = await huggingFaceTemplate(folder);
  const tokenizer = await folderTokenizer(folder);
  return {
    format: "huggingface",
    ...trees(
      said ? { ...config, tokens: { ...config.tokens, ...endings(config, said) } } : config,
      bindHuggingFace(config, tensors, basename(folder), (views) => (adapter ? merged(views, adapter) : views)),
    ),
    tensors,
    ...(tokenizer && { tokenizer }),
    ...(chatTemplate !== undefined && { chatTemplate }),
    defaults: said?.defaults ?? {},
  };
}

/** transformers 5 may write the image processor's part into the processor's file. */
async function withPreprocessing(config: Llama4Config, folder: string): Promise<Llama4Config> {
  const { vision } = config;
  if (!vision) return config;
  const own = await ifThere(join(folder, "preprocessor_config.json"), readJson);
  const shared = await ifThere(join(folder, "processor_config.json"), readJson);
  const part = shared && new Fields(shared, "processor_config.json").raw("image_processor");
  const preprocessing = own
    ? readPreprocessorConfig(own, vision)
    : isObject(part) && readPreprocessorConfig(part, vision, "processor_config.json: image_processor");
  return preprocessing ? { ...config, vision: { ...vision, preprocessing } } : config;
}

/** A config whose vision encoder is not among the tensors is one of a text model. */
function trees({ vision: encoder, ...config }: Llama4Config, { parameters, vision }: Bound) {
  return encoder && vision ? { config: { ...config, vision: encoder }, parameters, vision } : { config, parameters };
}

/** generation_config.json wins: chat models add their end-of-turn token there. */
function endings({ tokens }: Llama4Config, said: ReturnType<typeof readGenerationConfig>) {
  const bos = said.bos ?? tokens.bos;
  return { ...(bos !== undefined && { bos }), eos: said.eos.length > 0 ? said.eos : tokens.eos };
}

async function huggingFaceFiles(folder: string, open: Open): Promise<TensorView[]> {
  const single = join(folder, "model.safetensors");
  if (existsSync(single)) return readSafetensors(await open(single));
  const indexName = "model.safetensors.index.json";
  if (!existsSync(join(folder, indexName)))
    throw new CheckpointError(`${folder}: neither model.safetensors nor ${indexName} is there; fetch the weights`);
  const places = readIndex(await readText(join(folder, indexName)), indexName);
  const tensors: TensorView[] = [];
  for (const file of new Set(places.values())) tensors.push(...(await readSafetensors(await open(join(folder, file)))));
  const names = new Map(tensors.map((view) => [view.name, view]));
  for (const [name, file] of places)
    if (names.get(name)?.source.name !== file)
      throw new CheckpointError(`${indexName}: "${name}" is not in ${file} where it should be; fetch both again`);
  return tensors;
}

async function huggingFaceTemplate(folder: string): Promise<string | undefined> {
  const alone = await ifThere(join(folder, "chat_template.jinja"), readText);
  if (alone !== undefined) return alone;
  for (const name of ["chat_template.json", "tokenizer_config.json"]) {
    const template = (await ifThere(join(folder, name), readJson))?.["chat_template"];
    if (typeof template === "string") return template;
    if (template === undefined || template === null) continue;
    if (!Array.isArray(template))
      // else several templates by name
      throw new CheckpointError(
        `${name}: chat_template is ${JSON.stringify(template)}; expected a text, or a list of them by name`,
      );
    const usual = template.find((entry) => isObject(entry) && entry["name"] === "default");
    if (isObject(usual) && typeof usual["template"] === "string") return usual["template"];
  }
  return undefined;
}

async function folderTokenizer(folder: string): Promise<TokenizerMaterial | undefined> {
  const json = await ifThere(join(folder, "tokenizer.json"), readText);
  if (json !== undefined) return { kind: "huggingface", json };
  const bytes = await ifThere(join(folder, "tokenizer.model"), (path) => readFile(path));
  return bytes && { kind: "tiktoken", bytes };
}

// ---- Meta ----

async function openMeta(folder: string, open: Open): Promise<Contents> {
  const params = await readJson(join(folder, "params.json"));
  const names = (await readdir(folder)).filter((name) => /^consolidated\.\d+\.pth$/.test(name)).sort();
  if (names.length === 0)
    throw new CheckpointError(`${folder}: no consolidated.00.pth beside params.json; fetch the weights`);
  const gap = names.findIndex((name, i) => Number(name.split(".")[1]) !== i);
  if (gap >= 0) throw new CheckpointError(`${folder}: shard ${gap} is missing, ${names[gap]} follows; fetch it`);
  const shards: TensorView[][] = [];
  const { readTorch } = await import("./meta.ts"); // few need it
  for (const name of names) shards.push(await readTorch(await open(join(folder, name))));
  const config = fromMeta(params, { vocabRows: metaVocabRows(shards[0]!) * shards.length });
  const tokenizer = await folderTokenizer(folder);
  return {
    format: "meta",
    ...trees(config, bindMeta(config, shards, basename(folder))),
    tensors: shards.flat(),
    ...(tokenizer && { tokenizer }),
    defaults: {},
  };
}

// ---- GGUF ----

async function openGguf(path: string, mmproj: string | undefined, open: Open): Promise<Contents> {
  const parts: Awaited<ReturnType<typeof readGguf>>[] = [];
  for (const name of splitNames(basename(path))) {
    const part = join(dirname(path), name);
    if (!existsSync(part)) throw new CheckpointError(`${part}: this part of the split is missing; fetch it`);
    parts.push(await readGguf(await open(part)));
  }
  const { metadata } = parts[0]!;
  const tensors = parts.flatMap((part) => part.tensors);
  const file = basename(path);
  checkSplit(parts, file);
  const freqs = tensors.find(({ name }) => name === ropeFreqsName);
  const config = fromGguf(
    metadata,
    {
      vocabRows: ggufVocabRows(tensors),
      tied: !hasGgufOutput(tensors),
      ...(freqs && { ropeFreqs: await readNumbers(freqs) }),
    },
    file,
  );
  const parameters = bindGguf(config, tensors, file);
  const tokenizer = ggufTokenizer(metadata);
  const template = metadata.get("tokenizer.chat_template");
  const whole = file.replace(/-\d{5}-of-\d{5}(?=\.gguf$)/, ""); // a split model's vision part is one file
  const beside = mmproj ?? [file, whole].map((name) => join(dirname(path), mmprojName(name))).find(existsSync);
  const mmprojFile = beside === undefined ? undefined : await openMmproj(beside, config, open);
  return {
    format: "gguf",
    config: mmprojFile?.config ?? config,
    parameters,
    ...(mmprojFile && { vision: mmprojFile.vision }),
    tensors: [...tensors, ...(mmprojFile?.tensors ?? [])],
    ...(tokenizer && { tokenizer }),
    ...(template?.type === "string" && { chatTemplate: String(template.value) }),
    defaults: {},
    metadata,
  };
}

/** Where the vision part of a GGUF model stands unless told. */
export const mmprojName = (file: string): string => `mmproj-${file}`;

async function openMmproj(path: string, text: Llama4Config, open: Open) {
  if (!existsSync(path)) throw new CheckpointError(`${path}: no such file; expected the vision part of a GGUF model`);
  const { metadata, tensors } = await readGguf(await open(path));
  const file = basename(path);
  const config = checked({ ...text, vision: visionFromGguf(metadata, adapterRows(tensors), text, file) }, file);
  return { config, vision: bindMmproj(config, tensors, file), tensors };
}

function checkSplit(parts: readonly { metadata: GgufMetadata; tensors: readonly TensorView[] }[], file: string): void {
  for (const [i, { metadata }] of parts.entries()) {
    const fields = new Fields(scalars(metadata), `${file}: part ${i + 1}`);
    if (fields.count("split.count", { absent: 1, least: 0 }) > 1 || parts.length > 1) {
      if (fields.count("split.count") !== parts.length)
        throw fields.wrong("split.count", `${parts.length}, as the file's name says; keep the names of a split`);
      if (fields.count("split.no", { least: 0 }) !== i) throw fields.wrong("split.no", String(i));
    }
  }
  const told = new Fields(scalars(parts[0]!.metadata), file);
  const total = parts.reduce((sum, { tensors }) => sum + tensors.length, 0);
  if (told.count("split.tensors.count", { absent: total, least: 0 }) !== total)
    throw told.wrong("split.tensors.count", `the ${total} tensors that the parts hold`);
}

function scalars(metadata: GgufMetadata): Json {
  return Object.fromEntries([...metadata].flatMap(([key, e]) => (e.type === "array" ? [] : [[key, e.value]])));
}

const mostNumbers = 65536; // of a small tensor that the config is made of

async function readNumbers(view: TensorView): Promise<Float32Array> {
  const n = elementCount(view.shape);
  if (n > mostNumbers || dtypes[view.dtype].blockElements > 1)
    throw new CheckpointError(`${view.name} holds ${n} numbers as ${view.dtype}; expected f32 divisors, half a head's`);
  const out = new Float32Array(n);
  dequantize(view.dtype, await view.source.read(view.offset, storedBytes(view)), out);
  return out;
}

function ggufTokenizer(metadata: GgufMetadata): TokenizerMaterial | undefined {
  const list = (key: string, strings: boolean) => {
    const entry = metadata.get(`tokenizer.ggml.${key}`);
    return entry?.type === "array" && (entry.of === "string") === strings ? entry.values : undefined;
  };
  const text = (key: string, absent: string) => {
    const entry = metadata.get(`tokenizer.ggml.${key}`);
    return entry?.type === "string" ? String(entry.value) : absent;
  };
  const tokens = list("tokens", true) as readonly string[] | undefined; // the element type is "string"
  if (!tokens) return undefined;
  const merges = list("merges", true) as readonly string[] | undefined;
  return {
    kind: "gguf",
    model: text("model", "gpt2"),
    pre: text("pre", "llama4"),
    tokens,
    tokenTypes: (list("token_type", false) ?? new Int32Array(tokens.length).fill(1)) as ArrayLike<number>,
    ...(merges && { merges }),
  };
}
