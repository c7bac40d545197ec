// Which frames of a video are looked at, and how closely: the model knows images only, so a video is images with their
// times before them, as many as a budget of tokens pays for.

import { RequestError } from "../tensor/errors.ts";
import { imageTokens, layoutOf, type TileOptions } from "./image.ts";

/** What is known of a video before it is decoded. */
export interface VideoLength {
  readonly width: number;
  readonly height: number;
  /** Seconds. */
  readonly duration: number;
  /** Frames a second; absent where the file does not say. */
  readonly rate?: number | undefined;
}

export interface FramePlan {
  /** Seconds, in order, evenly apart. */
  readonly times: readonly number[];
  /** Seconds from one to the next. */
  readonly step: number;
  /** Most tiles of each frame, the global one not counted. */
  readonly maxTiles: number;
}

// Frames a second that are looked at, as Qwen2-VL samples videos (Wang et al. 2024, arXiv:2409.12191, §2.1). Of Llama 4
// only is published that it was trained with stills of videos (specification §8.6).
const MAX_RATE = 2;
const MOST_FRAMES = 65_536; // more than the longest published context holds, ten million tokens
const TIMESTAMP_TOKENS = 12; // of "[11:02:03.4]" where every character is a token; in Llama 4's vocabulary it takes 9

/** As many frames as the budget pays for with one tile each, at most two a second; what is left over buys tiles. */
export function planFrames(
  { width, height, duration, rate = Infinity }: VideoLength,
  { videoTokens, tokensPerTile, ...options }: TileOptions & { videoTokens: number; tokensPerTile: number },
): FramePlan {
  const tokens = (maxTiles: number) => {
    const layout = layoutOf({ width, height }, { ...options, maxTiles });
    return imageTokens(layout, tokensPerTile).reduce((sum, [, count]) => sum + count, TIMESTAMP_TOKENS);
  };
  const most = Math.floor(videoTokens / tokens(1));
  if (!(most >= 1) || most === Infinity)
    throw new RequestError(`videoTokens is ${videoTokens}; expected at least ${tokens(1)}, which is one frame`);
  const count = Math.min(Math.max(1, Math.ceil(duration * Math.min(MAX_RATE, rate))), most, MOST_FRAMES);
  const step = duration / count;
  let maxTiles = options.maxTiles ?? 16;
  while (maxTiles > 1 && tokens(maxTiles) * count > videoTokens) maxTiles--;
  return { times: Array.from({ length: count }, (_, i) => (i + 0.5) * step), step, maxTiles };
}

/** "[0:07.5]", "[1:02:03.0]". */
export function timestamp(seconds: number): string {
  const tenths = Math.round(seconds * 10);
  const two = (n: number) => String(n).padStart(2, "0");
  const [hours, minutes, rest] = [Math.floor(tenths / 36000), Math.floor(tenths / 600) % 60, tenths % 600];
  const end = `${two(Math.floor(rest / 10))}.${rest % 10}`;
  return hours > 0 ? `[${hours}:${two(minutes)}:${end}]` : `[${minutes}:${end}]`;
}
