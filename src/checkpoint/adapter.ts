// Low-rank changes of a Hugging Face checkpoint (LoRA, Hu et al. 2021, arXiv:2106.09685) in the layout of PEFT:
// adapter_config.json and adapter_model.safetensors. A folder that is opened with one has the changed weights, computed
// as they are read.
//
// R, C rows and columns of a tensor as stored · r rank · E experts

import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { dequantize } from "../tensor/block-formats.ts";
import { dtypes, encodeBf16, encodeF16 } from "../tensor/dtype.ts";
import { CheckpointError } from "../tensor/errors.ts";
import { elementCount, type Shape, type TensorView } from "../tensor/tensor.ts";
import { type Json, parseObject, show } from "./json.ts";
import { withoutPrefix } from "./names-hugging-face.ts";
import { readSafetensors } from "./safetensors.ts";
import { computed, openFile } from "./source.ts";
import type { OutTensor } from "./writers.ts";

/** What is added to a tensor `[R, C]`, or to each matrix of `[E, R, C]`: `scale · left · right`. */
export interface LowRank {
  /** 1 where the tensor is one matrix. */
  readonly experts: number;
  readonly rank: number;
  readonly scale: number;
  readonly left: Float32Array; // [R, r] or [E, R, r]
  readonly right: Float32Array; // [r, C] or [E, r, C]
}

/** Low-rank changes by the names of the tensors that they change, without what exporters put before. */
export type Adapter = ReadonlyMap<string, LowRank>;

const configName = "adapter_config.json";
const weightsName = "adapter_model.safetensors";

// ---- reading ----

interface PeftConfig {
  readonly alpha: number;
  /** The scale is alpha / √r instead of alpha / r. */
  readonly isRankStabilized: boolean;
  /** Ends of the names of parameters that are no linear layers' weights: the routed experts'. */
  readonly parameters: readonly string[];
}

// What says nothing about the numbers, or what the tensors say themselves.
const silentKeys = new Set([
  ...[
    "peft_type",
    "peft_version",
    "task_type",
    "base_model_name_or_path",
    "revision",
    "auto_mapping",
    "inference_mode",
  ],
  ...["r", "lora_alpha", "use_rslora", "target_modules", "target_parameters", "exclude_modules", "rank_pattern"],
  ...["layers_to_transform", "layers_pattern", "lora_dropout", "init_lora_weights", "bias", "megatron_core"],
  ...["qalora_group_size", "runtime_config"],
]);

/** Whether a setting is off, or empty. */
const isNothing = (value: unknown): boolean =>
  value === null || value === false || (typeof value === "object" && Object.values(value ?? {}).every(isNothing));

function readConfig(json: Json, name: string): PeftConfig {
  const wrong = (key: string, expected: string) =>
    new CheckpointError(`${name}: ${key} is ${show(json[key])}; expected ${expected}`);
  if (json["peft_type"] !== "LORA") throw wrong("peft_type", '"LORA": no other adapters are read');
  const { lora_alpha: alpha, target_parameters: parameters, bias, init_lora_weights: init } = json;
  if (typeof alpha !== "number" || !Number.isFinite(alpha)) throw wrong("lora_alpha", "a number");
  if (bias !== undefined && bias !== "none") throw wrong("bias", '"none": biases are not read');
  if (typeof init === "string" && !/^(gaussian|orthogonal|eva|lora_ga)$/i.test(init))
    throw wrong("init_lora_weights", "a beginning that leaves the base model's weights as they are");
  for (const [key, value] of Object.entries(json))
    if (!silentKeys.has(key) && !isNothing(value))
      throw wrong(key, "it to be off: adapters with it are not read (merge them with the program that made them)");
  return {
    alpha,
    isRankStabilized: json["use_rslora"] === true,
    parameters: Array.isArray(parameters) ? parameters.map(String) : [],
  };
}

interface Pair {
  a?: TensorView;
  b?: TensorView;
}

/** Reads an adapter for tensors of these shapes, by their names. Throws CheckpointError for a key that it does not know. */
export async function readAdapter(folder: string, shapes: ReadonlyMap<string, Shape>): Promise<Adapter> {
  for (const name of [configName, weightsName])
    if (!existsSync(join(folder, name)))
      throw new CheckpointError(`${folder}: no ${name} is there; expected a folder with an adapter in PEFT's layout`);
  const name = `${basename(folder)}/${configName}`;
  const config = readConfig(parseObject(await readFile(join(folder, configName), "utf8"), name), name);
  const file = await openFile(join(folder, weightsName));
  try {
    const pairs = new Map<string, Pair>();
    for (const view of await readSafetensors(file)) {
      const [, module, which] =
        /^(?:base_model\.model\.)?(.+)\.lora_([AB])\.(?:default\.)?weight$/.exec(view.name) ?? [];
      if (module === undefined || view.shape.length !== 2)
        throw new CheckpointError(
          `${file.name}: ${show(view.name)} is [${view.shape.join(", ")}]; expected only matrices named …lora_A.weight and …lora_B.weight`,
        );
      const pair = pairs.get(module) ?? {};
      pairs.set(module, { ...pair, [which === "A" ? "a" : "b"]: view });
    }
    const changes = new Map<string, LowRank>();
    for (const [module, { a, b }] of pairs) {
      if (!a || !b) throw new CheckpointError(`${file.name}: ${show(module)} has only one of lora_A and lora_B`);
      const tensor = changedTensor(module, config.parameters);
      const shape = shapes.get(tensor);
      if (!shape)
        throw new CheckpointError(
          `${file.name}: ${show(module)} changes ${show(tensor)}, which the model has not; expected an adapter of this model`,
        );
      changes.set(tensor, await lowRank(a, b, shape, config));
    }
    if (changes.size === 0) throw new CheckpointError(`${file.name}: it holds no tensor; expected lora_A and lora_B`);
    return changes;
  } finally {
    await file.close();
  }
}

/**
 * What a module's adapter changes. Experts' parameters are targeted one by one, and PEFT wraps the module once for each,
 * in the order of the module's own parameters: with both, the inner one is gate_up_proj's.
 */
function changedTensor(module: string, parameters: readonly string[]): string {
  const [, experts, inner] = /^(.+\.experts)((?:\.base_layer)*)$/.exec(module) ?? [];
  if (experts === undefined) return withoutPrefix(`${module}.weight`);
  const targeted = ["gate_up_proj", "down_proj"].filter((name) =>
    parameters.some((end) => `.${experts}.${name}`.endsWith(`.${end}`)),
  );
  const depth = inner!.length / ".base_layer".length;
  return withoutPrefix(`${experts}.${targeted.at(-1 - depth) ?? "(no target_parameters)"}`);
}

/** The same product whichever way round PEFT held the parameter: its releases differ for experts (see `expertFactors`). */
async function lowRank(a: TensorView, b: TensorView, shape: Shape, config: PeftConfig): Promise<LowRank> {
  const [E, R, C] = [1, ...shape].slice(-3) as [number, number, number];
  const [rows, inputs] = a.shape as [number, number];
  const [outputs, columns] = b.shape as [number, number];
  const rank = rows / E;
  const isSwapped = outputs === R && inputs === C;
  if (rows !== columns || !Number.isInteger(rank) || !(isSwapped || (E > 1 && outputs === C && inputs === R)))
    throw new CheckpointError(
      `${a.source.name}: ${show(a.name)} is [${a.shape.join(", ")}] and lora_B [${b.shape.join(", ")}]; expected [${E} · rank, ${C}] and [${R}, ${E} · rank] for a tensor of [${shape.join(", ")}]`,
    );
  const scale = config.alpha / (config.isRankStabilized ? Math.sqrt(rank) : rank);
  const [A, B] = [await numbers(a), await numbers(b)];
  const factors = isSwapped ? expertFactors(A, B, E, rank) : unswappedFactors(A, B, E, rank);
  return { experts: E, rank, scale, ...factors };
}

async function numbers(view: TensorView): Promise<Float32Array> {
  const out = new Float32Array(elementCount(view.shape));
  dequantize(view.dtype, await view.source.read(view.offset, out.length * dtypes[view.dtype].blockBytes), out);
  return out;
}

/** Row e·r + k of A `[E·r, C]` and column k·E + e of B `[R, r·E]` belong to expert e; with one, they stand as they are. */
function expertFactors(A: Float32Array, B: Float32Array, E: number, rank: number): Pick<LowRank, "left" | "right"> {
  const R = B.length / (E * rank);
  const left = new Float32Array(B.length); // [E, R, r]
  for (let e = 0; e < E; e++)
    for (let row = 0; row < R; row++)
      for (let k = 0; k < rank; k++) left[(e * R + row) * rank + k] = B[(row * rank + k) * E + e]!;
  return { left, right: A };
}

/** PEFT before 0.19: A `[E·r, R]` meets the input, B `[C, r·E]` gives the output. */
function unswappedFactors(A: Float32Array, B: Float32Array, E: number, rank: number): Pick<LowRank, "left" | "right"> {
  const [R, C] = [A.length, B.length].map((n) => n / (E * rank)) as [number, number];
  const left = new Float32Array(A.length); // [E, R, r]
  const right = new Float32Array(B.length); // [E, r, C]
  for (let e = 0; e < E; e++)
    for (let k = 0; k < rank; k++) {
      for (let row = 0; row < R; row++) left[(e * R + row) * rank + k] = A[(e * rank + k) * R + row]!;
      for (let column = 0; column < C; column++) right[(e * rank + k) * C + column] = B[(column * rank + k) * E + e]!;
    }
  return { left, right };
}

// ---- merging ----

/** The tensors with the adapter's changes gone into them. */
export function merged(tensors: readonly TensorView[], adapter: Adapter): TensorView[] {
  return tensors.map((view) => {
    const change = adapter.get(withoutPrefix(view.name));
    return change ? changed(view, change) : view;
  });
}

function changed(view: TensorView, { rank, scale, left, right }: LowRank): TensorView {
  const { name, dtype, shape, source, offset } = view;
  if (dtype !== "f32" && dtype !== "f16" && dtype !== "bf16")
    throw new CheckpointError(`${show(name)} is ${dtype}; expected f32, f16 or bf16 to merge an adapter into`);
  const [R, C] = shape.slice(-2) as [number, number];
  const size = dtypes[dtype].blockBytes;
  const read = async (first: number, n: number) => {
    const top = Math.floor(first / C); // rows that the range touches
    const rows = Math.ceil((first + n) / C) - top;
    const sums = new Float32Array(rows * C);
    dequantize(dtype, await source.read(offset + top * C * size, sums.length * size), sums);
    const sum = new Float64Array(C); // rounded once
    for (let i = 0; i < rows; i++) {
      const own = sums.subarray(i * C, (i + 1) * C);
      sum.set(own);
      const matrix = Math.floor((top + i) / R);
      for (let k = 0; k < rank; k++) {
        const factor = scale * left[(top + i) * rank + k]!;
        const at = (matrix * rank + k) * C;
        for (let c = 0; c < C; c++) sum[c]! += factor * right[at + c]!;
      }
      own.set(sum);
    }
    const out = sums.subarray(first - top * C, first - top * C + n);
    if (dtype === "f32") return new Uint8Array(out.buffer, out.byteOffset, out.byteLength);
    const bits = new Uint16Array(n);
    (dtype === "bf16" ? encodeBf16 : encodeF16)(out, bits);
    return new Uint8Array(bits.buffer);
  };
  return { name, dtype, shape, source: computed(name, size, elementCount(shape), read), offset: 0 };
}

// ---- writing ----

export interface AdapterHead {
  readonly rank: number;
  readonly alpha: number;
  /** Where the base model is, for those who load the adapter without saying it. */
  readonly base: string;
}

/** What an adapter's folder holds: its config, and its tensors for adapter_model.safetensors. */
export function adapterFiles(changes: Adapter, { rank, alpha, base }: AdapterHead) {
  const modules = new Set<string>();
  const parameters = new Set<string>();
  const tensors: OutTensor[] = [];
  for (const [name, change] of changes) {
    const [, experts, parameter] = /^(.+\.experts)\.(\w+)$/.exec(name) ?? [];
    if (experts === undefined) modules.add(pattern(name.replace(/\.weight$/, "")));
    else parameters.add(`feed_forward.experts.${parameter}`);
    const inner = parameter === "gate_up_proj" && changes.has(`${experts}.down_proj`) ? ".base_layer" : "";
    const module = `base_model.model.${experts === undefined ? name.replace(/\.weight$/, "") : experts + inner}`;
    tensors.push(...peftTensors(module, change));
  }
  const config = {
    ...{ peft_type: "LORA", task_type: "CAUSAL_LM", base_model_name_or_path: base, inference_mode: true },
    ...{ r: rank, lora_alpha: alpha, lora_dropout: 0, bias: "none", fan_in_fan_out: false, use_rslora: false },
    target_modules: modules.size > 0 ? [...modules].join("|") : [],
    target_parameters: parameters.size > 0 ? [...parameters] : null,
  };
  return { config: { [configName]: `${JSON.stringify(config, null, 2)}\n` }, weightsName, tensors };
}

/** A module's name as an expression that fits it in every layer. */
const pattern = (module: string) => module.replaceAll(".", "\\.").replace(/layers\\\.\d+/, "layers\\.\\d+");

function peftTensors(module: string, { experts: E, rank, left, right }: LowRank): OutTensor[] {
  const [R, C] = [left.length / (E * rank), right.length / (E * rank)];
  const B = new Float32Array(left.length); // [R, r·E]: see expertFactors
  for (let e = 0; e < E; e++)
    for (let row = 0; row < R; row++)
      for (let k = 0; k < rank; k++) B[(row * rank + k) * E + e] = left[(e * R + row) * rank + k]!;
  const tensor = (which: "A" | "B", shape: Shape, values: Float32Array): OutTensor => ({
    ...{ name: `${module}.lora_${which}.weight`, dtype: "f32", shape },
    async *chunks() {
      yield new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    },
  });
  return [tensor("A", [E * rank, C], right), tensor("B", [R, rank * E], B)];
}
