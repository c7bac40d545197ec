// The experts of a reply: gathered as they are streamed, and told in words and colours.

import type { RoutedToken } from "./api.ts";
import type { Routes } from "./conversation.ts";

/** The routes with some more tokens, which together brought `text`. Lists grow in place; the object is a new one. */
export function withTokens(routes: Routes | undefined, tokens: readonly RoutedToken[], text: string): Routes {
  const first = tokens[0]!;
  const { layers, perToken, ...lists } = routes ?? {
    layers: first.layers,
    perToken: first.experts[0]?.length ?? 0,
    ...{ texts: [] as string[], experts: [] as number[], scores: [] as number[], margins: [] as (number | null)[] },
  };
  const growing = lists as { [K in keyof typeof lists]: (typeof lists)[K][number][] }; // ours: made here
  for (const [i, { experts, scores, margins }] of tokens.entries()) {
    growing.texts.push(i === 0 ? text : "");
    growing.experts.push(...experts.flat());
    growing.scores.push(...scores.flat());
    growing.margins.push(...margins);
  }
  return { layers, perToken, ...growing };
}

/** What one cell of the map stands for. */
export interface Cell {
  readonly experts: readonly number[];
  readonly scores: readonly number[];
  readonly margin: number | null;
}

/** Of token t and the m-th of the layers with experts. */
export function cellAt({ layers, perToken, experts, scores, margins }: Routes, t: number, m: number): Cell {
  const at = (t * layers.length + m) * perToken;
  return {
    experts: experts.slice(at, at + perToken),
    scores: scores.slice(at, at + perToken),
    margin: margins[t * layers.length + m] ?? null,
  };
}

/** How often each of E experts was the first choice: over all layers, or in the m-th. */
export function countExperts({ layers, perToken, experts }: Routes, E: number, m?: number): number[] {
  const counts = Array.from({ length: E }, () => 0);
  const M = layers.length;
  for (let i = 0; i * perToken < experts.length; i++)
    if (m === undefined || i % M === m) counts[experts[i * perToken]!]!++;
  return counts;
}

const SAMPLED = 4000;

/** The margin that counts as clear: three quarters of the reply's are below. Of a long reply some are looked at. */
export function clearMargin({ margins }: Routes): number {
  const every = Math.ceil(margins.length / SAMPLED);
  const sorted = margins.filter((margin, i) => margin !== null && i % every === 0).sort((a, b) => a! - b!);
  return sorted[Math.floor(sorted.length * 0.75)] || 1;
}

/** From a fifth, for a choice that was nearly another, to 1. */
export const strengthOf = (margin: number | null, clear: number): number =>
  margin === null ? 1 : 0.2 + 0.8 * Math.min(1, margin / clear);

/** An expert's colour: neighbours differ much, and no two of 16 are alike. */
export function colourOf(expert: number, E: number, isDark: boolean): string {
  const hue = E <= 16 ? (360 * ((expert * 7) % 16)) / 16 : (expert * 137.508) % 360;
  const pale = isPale(expert, E);
  const lightness = (isDark ? 74 : 62) - (pale ? 0 : 13);
  return `oklch(${lightness}% ${pale ? 0.15 : 0.13} ${(hue + 20).toFixed(1)})`;
}

/** What can be read on that colour. */
export const inkOn = (expert: number, E: number, isDark: boolean): string =>
  isDark || isPale(expert, E) ? "#16171b" : "#fff";

/** Every other group of experts is darker. */
const isPale = (expert: number, E: number) => Math.floor(expert / (E <= 16 ? 8 : 3)) % 2 === 0;

/** A token as it can be read: white space and pieces of characters are made visible. */
export function shownToken(text: string, isLast = false): string {
  if (text === "") return isLast ? "end" : "·";
  return text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "\u00a0");
}
