// Checkpoint + backend = a model in memory, after a look at whether it fits.

import { readFileSync } from "node:fs";
import { loadAddon } from "./backends/native/addon.ts";
import { openNative } from "./backends/native/backend.ts";
import { parseObject } from "./checkpoint/json.ts";
import { type Checkpoint, openCheckpoint } from "./checkpoint/open.ts";
import { IMAGE_CACHE_BYTES } from "./engine/images.ts";
import { cacheSizes, contextFor } from "./engine/kv-cache.ts";
import type { Llama4Config } from "./model/config.ts";
import { mapParameters, mapVision, type Parameters, type VisionParameters } from "./model/parameters.ts";
import type { ChatFormat } from "./prompt/chat-format.ts";
import { fromGguf } from "./prompt/gguf-vocabulary.ts";
import { chatFormat } from "./prompt/template.ts";
import { fromTiktoken } from "./prompt/tiktoken.ts";
import type { Tokenizer } from "./prompt/tokenizer.ts";
import { fromHuggingFace } from "./prompt/tokenizer-json.ts";
import { type Backend, type KVDType, kvDtypes } from "./tensor/backend.ts";
import { CapacityError, CheckpointError, RequestError } from "./tensor/errors.ts";
import { storedBytes, type Tensor, type TensorView } from "./tensor/tensor.ts";

export interface OpenOptions {
  /** Default: native, and reference where that does not load. */
  readonly backend?: "native" | "reference" | undefined;
  /** Threads that compute; default all cores. The reference backend computes in one and takes no number. */
  readonly threads?: number | undefined;
  /** "f32" computes on exactly dequantized weights; "int8", the default, rounds activations and is several times faster. */
  readonly activations?: "f32" | "int8" | undefined;
  /** Tokens that prompt and reply may have together. Default: 32,768, less where the model or the memory has less. */
  readonly context?: number | undefined;
  /** How keys and values are kept; default f32 for a model in f32 and in the reference backend, else f16. */
  readonly kvDtype?: KVDType | undefined;
  /** The vision part of a GGUF model; default: `mmproj-<name>` beside it, if it is there. */
  readonly mmproj?: string | undefined;
  /** A folder with an adapter in PEFT's layout, for a model in Hugging Face's: it goes into the weights as they are read. */
  readonly adapter?: string | undefined;
  /** Most bytes of images' features that are kept for when an image comes again. */
  readonly imageCacheBytes?: number | undefined;
  /** Leaves the vision encoder out: for a model that is never given an image. Default: it is loaded where there is one. */
  readonly vision?: boolean | undefined;
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
  /** Hears what is not as asked, but goes on. */
  readonly onWarning?: ((message: string) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** A model in memory. Close it to free that. */
export interface OpenModel {
  readonly path: string;
  readonly checkpoint: Omit<Checkpoint, "parameters" | "vision" | "close">;
  readonly config: Llama4Config;
  readonly backend: Backend;
  readonly parameters: Parameters;
  /** There where `config.vision` is. */
  readonly vision: VisionParameters | undefined;
  readonly context: number;
  readonly kvDtype: KVDType;
  readonly tokenizer: Tokenizer | undefined;
  readonly chatFormat: ChatFormat | undefined;
  /** What the checkpoint recommends. */
  readonly sampling: Checkpoint["defaults"];
  readonly weightBytes: number;
  readonly kvBytes: number;
  readonly loadMs: number;
  close(): void;
}

const backends = ["native", "reference"];

function oneOf(name: string, value: unknown, allowed: readonly unknown[]): void {
  if (value === undefined || allowed.includes(value)) return;
  throw new RequestError(`${name} is ${JSON.stringify(value)}; expected one of ${allowed.join(", ")}`);
}

/** Opens a checkpoint and loads its weights. Says before loading whether they fit. */
export async function openModel(path: string, options: OpenOptions = {}): Promise<OpenModel> {
  const start = performance.now();
  const { threads, activations, mmproj, adapter, onProgress, onWarning = () => {}, signal } = options;
  signal?.throwIfAborted();
  oneOf("backend", options.backend, backends);
  oneOf("kvDtype", options.kvDtype, kvDtypes);
  if (threads !== undefined && !(Number.isInteger(threads) && threads >= 1 && threads <= 1024))
    throw new RequestError(`threads is ${threads}; expected a whole number from 1 to 1024`);
  if (options.backend === "reference" && threads !== undefined)
    throw new RequestError(
      `threads is ${threads} with the reference backend, which computes in one; leave out one of them`,
    );
  const opened = await openCheckpoint(path, { mmproj, adapter, signal });
  const inside = opened.vision
    ? []
    : opened.tensors.filter(({ name }) => opened.format === "gguf" && /^(v|mm)\./.test(name));
  if (options.vision !== false && inside.length > 0)
    onWarning(
      `${path}: tensors of a vision encoder (${inside.length}, as ${inside[0]!.name}) stand inside the text model's file and are ` +
        "left out; images need them in a file of their own (`mmproj`)",
    );
  const checkpoint = options.vision === false ? withoutVision(opened) : opened;
  try {
    const { config, defaults: sampling } = checkpoint;
    const backend = await openBackend(options.backend, { threads, activations }, onWarning);
    try {
      const views: TensorView[] = [];
      mapParameters(checkpoint.parameters, (view) => views.push(view));
      if (checkpoint.vision) mapVision(checkpoint.vision, (view) => views.push(view));
      const isReference = backend.name === "reference";
      const room = roomFor(new Set(views), config, options, isReference, availableMemory());
      const stop = new AbortController();
      const reading = backend.load(views, {
        ...(onProgress && { onProgress }),
        signal: signal ? AbortSignal.any([signal, stop.signal]) : stop.signal,
      });
      const prompts = await beside(reading, stop, () => openPrompts(checkpoint));
      return {
        ...{ path, checkpoint, config, backend, sampling, ...room, ...prompts },
        ...loaded(checkpoint, await reading),
        loadMs: performance.now() - start,
        close: () => backend.close(),
      };
    } catch (error) {
      backend.close();
      throw error;
    }
  } finally {
    await checkpoint.close();
  }
}

/** What `body` returns, which runs while threads read. If it throws, they are stopped first. */
async function beside<T>(reading: Promise<unknown>, stop: AbortController, body: () => T): Promise<T> {
  try {
    return body();
  } catch (error) {
    stop.abort();
    await reading.catch(() => {});
    throw error;
  }
}

/** The tokenizer, and how it writes a chat. */
function openPrompts(checkpoint: Checkpoint): Pick<OpenModel, "tokenizer" | "chatFormat"> {
  const { config, chatTemplate } = checkpoint;
  const tokenizer = openTokenizer(checkpoint);
  if (checkpoint.vision && tokenizer)
    checkPatch(checkpoint.path, config.tokens.patch, tokenizer.special.get("<|patch|>"));
  return { tokenizer, chatFormat: tokenizer && chatFormat(tokenizer, chatTemplate) };
}

/** What stands for an image in a prompt must be what the model replaces by its features. */
function checkPatch(path: string, id: number | undefined, expected: number | undefined): void {
  if (id === expected) return;
  const [found, wanted] = [id ?? "absent", expected ?? "none: it has no such token"];
  throw new CheckpointError(
    `${path}: the config's image token is ${found} and the tokenizer's <|patch|> is ${wanted}; expected the same id for both (config.json: image_token_index)`,
  );
}

/** Opens a smaller model that is to guess what another will say. Throws RequestError where their vocabularies differ. */
export async function openDraft(path: string, model: OpenModel, options: OpenOptions): Promise<OpenModel> {
  const { backend, threads, activations, kvDtype, onWarning, signal } = options;
  const draft = await openModel(path, {
    ...{ backend, threads, activations, kvDtype, onWarning, signal },
    vision: false,
  });
  try {
    const [size, expected] = [draft.config.vocabSize, model.config.vocabSize];
    if (size !== expected)
      throw new RequestError(
        `the draft model ${path} has ${size} tokens and the model ${expected}; expected a draft model with the same vocabulary`,
      );
    const [ours, theirs] = [model.tokenizer, draft.tokenizer];
    for (let id = 0; ours && theirs && id < size; id++)
      if (Buffer.compare(ours.tokenBytes(id), theirs.tokenBytes(id)) !== 0)
        throw new RequestError(
          `token ${id} of the draft model ${path} is another than the model's; expected a draft model with the same vocabulary`,
        );
    return draft;
  } catch (error) {
    draft.close();
    throw error;
  }
}

function withoutVision({ vision: _, config: { vision: __, ...config }, ...text }: Checkpoint): Checkpoint {
  return { ...text, config };
}

/** The checkpoint's tokenizer, if it has one. A tokenizer of another size than the model's vocabulary is refused. */
export function openTokenizer({
  tokenizer: material,
  config,
}: Pick<Checkpoint, "tokenizer" | "config">): Tokenizer | undefined {
  const options = { vocabSize: config.vocabSize, bos: config.tokens.bos, eos: config.tokens.eos };
  if (!material) return undefined;
  switch (material.kind) {
    case "huggingface":
      return fromHuggingFace(parseObject(material.json, "tokenizer.json"), options);
    case "tiktoken":
      return fromTiktoken(material.bytes, options);
    case "gguf":
      return fromGguf(material, options);
    default:
      return material satisfies never;
  }
}

/** The trees again, with the tensors in the order in which their views were visited. */
function loaded({ parameters, vision }: Checkpoint, tensors: readonly Tensor[]) {
  let next = 0;
  const take = () => tensors[next++]!;
  return { parameters: mapParameters(parameters, take), vision: vision && mapVision(vision, take) };
}

interface BackendOptions {
  readonly threads: number | undefined;
  readonly activations: "f32" | "int8" | undefined;
}

async function openBackend(
  name: OpenOptions["backend"],
  { threads, activations }: BackendOptions,
  warn: (message: string) => void,
): Promise<Backend> {
  const reference = async () => (await import("./backends/reference/reference.ts")).openReference(); // few need it
  if (name === "reference") return reference();
  if (name === undefined) {
    try {
      loadAddon();
    } catch (error) {
      warn(`${error instanceof Error ? error.message : error}; going on with the slow reference backend`);
      return reference();
    }
  }
  return openNative({ ...(threads !== undefined && { threads }), ...(activations && { activations }) });
}

interface Room {
  readonly context: number;
  readonly kvDtype: KVDType;
  readonly weightBytes: number;
  readonly kvBytes: number;
}

export const DEFAULT_CONTEXT = 32_768;

/**
 * Beside weights and cache: activations of a step, what products pack of them (at most 16 MiB, native/gemm.h), JavaScript's
 * heap, and features of images where the model sees. Each thread's own buffer is in it: 0.5 MiB of sums (linear-int8.cc),
 * or 64 decoded rows of weights where products are exact (linear.cc; 4 MiB for rows of 16,384).
 */
export const workingBytes = (c: Llama4Config, imageCacheBytes = IMAGE_CACHE_BYTES): number =>
  300e6 + (c.vision ? imageCacheBytes : 0);

/** What weights and cache take, or a CapacityError where `available` bytes are less. */
export function roomFor(
  views: Iterable<TensorView>,
  c: Llama4Config,
  { context, kvDtype, imageCacheBytes }: Pick<OpenOptions, "context" | "kvDtype" | "imageCacheBytes">,
  isReference: boolean,
  available: number,
): Room {
  let weightBytes = 0;
  let isExact = true;
  for (const { dtype, shape } of views) {
    weightBytes += storedBytes({ dtype: isReference ? "f32" : dtype, shape }); // the reference dequantizes all
    isExact &&= dtype === "f32" || shape.length < 2;
  }
  const dtype = kvDtype ?? (isReference || isExact ? "f32" : "f16");
  const kept = isReference ? "f32" : dtype; // the reference rounds numbers and does not pack them
  if (context !== undefined && (!Number.isInteger(context) || context < 1 || context > c.contextLength))
    throw new RequestError(`context is ${context}; expected a whole number from 1 to the model's ${c.contextLength}`);
  const working = workingBytes(c, imageCacheBytes);
  const left = available - weightBytes - working;
  const size = (tokens: number) => cacheSizes(c, { context: tokens, dtype: kept }).bytes;
  let tokens = context ?? Math.min(c.contextLength, DEFAULT_CONTEXT);
  if (context === undefined && size(tokens) > left && size(1) <= left) tokens = contextFor(c, left, { dtype: kept });
  const kvBytes = size(tokens);
  if (kvBytes > left)
    throw new CapacityError(
      `the weights take ${gigabytes(weightBytes)} and the cache for ${tokens.toLocaleString("en")} tokens ${gigabytes(kvBytes)}, ` +
        `and ${gigabytes(available)} of memory are available; expected room for both and ${gigabytes(working)} to work with: take a smaller \`context\`, ` +
        "a checkpoint of fewer bits (llama4 convert), or a machine with more memory (llama4 plan)",
    );
  return { context: tokens, kvDtype: dtype, weightBytes, kvBytes };
}

const gigabytes = (bytes: number) => `${(bytes / 1e9).toFixed(bytes < 1e9 ? 3 : 1)} GB`;

/** Bytes that can be allocated without pushing anything out: what Linux says, and what the container leaves. */
export function availableMemory(read: (path: string) => string | undefined = readText): number {
  const kilobytes = /^MemAvailable:\s+(\d+) kB$/m.exec(read("/proc/meminfo") ?? "")?.[1];
  // elsewhere nothing says it reliably (os.freemem counts the page cache as taken)
  const machine = kilobytes === undefined ? Infinity : Number(kilobytes) * 1024;
  const cgroups = [
    ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"],
    [
      "/sys/fs/cgroup/memory/memory.limit_in_bytes",
      "/sys/fs/cgroup/memory/memory.usage_in_bytes",
      "/sys/fs/cgroup/memory/memory.stat",
    ],
  ] as const;
  const left = cgroups.map(([limit, usage, stat]) => {
    const most = Number(read(limit) ?? Number.NaN); // "max" is NaN: no limit
    const used = Number(read(usage) ?? Number.NaN);
    const reclaimable = Number(/^(?:total_)?inactive_file (\d+)$/m.exec(read(stat) ?? "")?.[1] ?? 0);
    return Number.isFinite(most - used) ? most - used + reclaimable : Infinity;
  });
  return Math.min(machine, ...left);
}

function readText(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8").trim();
  } catch {
    return undefined;
  }
}
