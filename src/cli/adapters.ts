// What a run with `lora` learns, as a folder in PEFT's layout and back.
//
// r rank · O out · I in · E experts

import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type Adapter, adapterFiles, type LowRank, readAdapter } from "../checkpoint/adapter.ts";
import { huggingFaceTensors, slotTensor, withoutPrefix } from "../checkpoint/names-hugging-face.ts";
import { writeSafetensorsFile } from "../checkpoint/writers.ts";
import type { Llama4Config } from "../model/config.ts";
import type { Parameters } from "../model/parameters.ts";
import type { Backend, TrainingBackend } from "../tensor/backend.ts";
import { CheckpointError } from "../tensor/errors.ts";
import { beginAdapters, type LoraAdapter, type LoraOptions } from "../train/lora.ts";

/** Writes adapter_config.json and adapter_model.safetensors. */
export async function writeAdapter(
  folder: string,
  { backend, model, adapters, lora, base }: WrittenAdapter,
): Promise<void> {
  const changes = new Map<string, LowRank>();
  for (const { layer, slot, ...factors } of adapters)
    changes.set(slotTensor(model, layer, slot)!, await stored(backend, factors, lora));
  const { config, weightsName, tensors } = adapterFiles(changes, { ...lora, base });
  await mkdir(folder, { recursive: true });
  for (const [name, text] of Object.entries(config)) await writeFile(join(folder, name), text);
  await writeSafetensorsFile(join(folder, weightsName), tensors);
}

interface WrittenAdapter {
  readonly backend: Backend;
  readonly model: Llama4Config;
  readonly adapters: readonly LoraAdapter[];
  readonly lora: LoraOptions;
  /** The base model's path. */
  readonly base: string;
}

/** The adapters of a folder that `writeAdapter` wrote for the same slots. */
export async function readAdapters(
  folder: string,
  {
    backend,
    model,
    text,
    lora,
  }: { backend: TrainingBackend; model: Llama4Config; text: Parameters; lora: LoraOptions },
): Promise<LoraAdapter[]> {
  const shapes = new Map(huggingFaceTensors(model).map(({ name, shape }) => [withoutPrefix(name), shape]));
  const changes: Adapter = await readAdapter(folder, shapes);
  return beginAdapters(backend, text, lora, 0).map((fresh) => {
    const name = slotTensor(model, fresh.layer, fresh.slot)!;
    const change = changes.get(withoutPrefix(name));
    if (change?.rank !== lora.rank)
      throw new CheckpointError(
        `${folder}: the change of "${name}" has ${change ? `rank ${change.rank}` : "no tensors"}; expected rank ${lora.rank}, as the config says`,
      );
    return { ...fresh, ...loaded(backend, fresh, change) };
  });
}

type Factors = Pick<LoraAdapter, "a" | "b">;

/** Linear layers are stored [out, in], banks of experts [in, out], their outs side by side. */
async function stored(backend: Backend, { a, b }: Factors, { rank, alpha }: LoraOptions): Promise<LowRank> {
  const numbers = async (x: LoraAdapter["a"]) => Float32Array.from(await backend.read(x));
  const scale = alpha / rank;
  if (a.shape.length === 2) return { experts: 1, rank, scale, left: await numbers(b[0]!), right: await numbers(a) };
  const [E, , I] = a.shape as [number, number, number];
  const left = turned(await numbers(a), E, rank, I); // [E, I, r]
  const C = b.reduce((sum, { shape }) => sum + shape[1]!, 0);
  const right = new Float32Array(E * rank * C);
  let column = 0;
  for (const part of b) {
    const O = part.shape[1]!;
    const rows = turned(await numbers(part), E, O, rank); // [E, r, O]
    for (let row = 0; row < E * rank; row++) right.set(rows.subarray(row * O, (row + 1) * O), row * C + column);
    column += O;
  }
  return { experts: E, rank, scale, left, right };
}

function loaded(backend: Backend, { a, b }: Factors, { rank, left, right }: LowRank): Factors {
  if (a.shape.length === 2) return { a: backend.from(right, a.shape), b: [backend.from(left, b[0]!.shape)] };
  const [E, , I] = a.shape as [number, number, number];
  const C = right.length / (E * rank);
  let column = 0;
  const parts = b.map(({ shape }) => {
    const O = shape[1]!;
    const rows = new Float32Array(E * rank * O); // [E, r, O]
    for (let row = 0; row < E * rank; row++) rows.set(right.subarray(row * C + column, row * C + column + O), row * O);
    column += O;
    return backend.from(turned(rows, E, rank, O), shape);
  });
  return { a: backend.from(turned(left, E, I, rank), a.shape), b: parts };
}

/** Each of E matrices `[m, n]` as `[n, m]`. */
function turned(x: Float32Array, E: number, m: number, n: number): Float32Array {
  const out = new Float32Array(x.length);
  for (let e = 0; e < E; e++)
    for (let i = 0; i < m; i++) for (let j = 0; j < n; j++) out[(e * n + j) * m + i] = x[(e * m + i) * n + j]!;
  return out;
}
