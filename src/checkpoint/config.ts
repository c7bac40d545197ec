// What the readers of the three formats share; each has a file, config-<format>.ts, and all end in one Llama4Config
// (specification §1).

import { type Llama4Config, presets } from "../model/config.ts";
import { CheckpointError, RequestError } from "../tensor/errors.ts";
import { type Fields, show } from "./json.ts";

export type PresetName = keyof typeof presets;

/** The published model of that name; RequestError names those that exist. */
export function preset(name: string): Llama4Config {
  if (!Object.hasOwn(presets, name))
    throw new RequestError(`${show(name)} is no preset; expected ${Object.keys(presets).join(", ")}`);
  return presets[name as PresetName];
}

/** Sizes must fit together before any tensor is looked at. */
export function checked(c: Llama4Config, name: string): Llama4Config {
  const refuse = (what: string) => new CheckpointError(`${name}: ${what}`);
  if (c.nHeads % c.nKvHeads)
    throw refuse(`${c.nHeads} heads cannot share ${c.nKvHeads} key/value heads; expected a divisor`);
  if (c.headDim % 2) throw refuse(`the head dim is ${c.headDim}; expected an even number, rotated in pairs`);
  if (c.layers.some((kind) => kind.moe) && (c.nExperts < 1 || c.topK > c.nExperts))
    throw refuse(`${c.topK} of ${c.nExperts} experts for a token; expected at least one and no more than there are`);
  if (c.ropeDivisors && c.ropeDivisors.length !== c.headDim / 2)
    throw refuse(`${c.ropeDivisors.length} rope divisors for a head dim of ${c.headDim}; expected ${c.headDim / 2}`);
  const v = c.vision;
  if (v && (v.imageSize % (v.patchSize * v.shuffle) || v.dim % (4 * v.nHeads)))
    throw refuse(
      `vision: an image of ${v.imageSize} in patches of ${v.patchSize} × ${v.shuffle}, ${v.nHeads} heads of ${v.dim}; ` +
        "expected whole numbers of each, and heads of a multiple of 4, rotated in pairs by column and by row",
    );
  return c;
}

export const mostLayers = 4096; // so that a hostile count makes no long list

/** Whether attention temperature is tuned. */
export function temperatureOf(fields: Fields, key: string, absent: boolean): boolean {
  const value = fields.scalar(key, absent);
  if (typeof value !== "boolean" && !(typeof value === "number" && Number.isInteger(value) && value >= 0))
    throw fields.wrong(key, "true, false or a whole number (older files store 4 for true)");
  return Boolean(value);
}

export function tokenId(fields: Fields, key: string): number | undefined {
  return fields.has(key) ? fields.count(key, { least: 0 }) : undefined;
}
