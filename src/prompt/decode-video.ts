// Video files to frames, by the programs ffprobe and ffmpeg; animated GIF and WebP by the image decoder.

import { spawn } from "node:child_process";
import { mkdtemp, open, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { RequestError } from "../tensor/errors.ts";
import type { Media } from "./chat-format.ts";
import {
  animationTimes,
  bytesOf,
  checkBytes,
  checkSize,
  decodeImage,
  existing,
  formatOf,
  named,
  openImage,
} from "./decode-image.ts";
import { digest, type MediaOptions, type OpenVideo } from "./media.ts";
import type { Pixels } from "./resize.ts";
import type { FramePlan, VideoLength } from "./video.ts";

/** A video part: its file stays open until it is closed. */
export async function openVideo(media: Media, options: MediaOptions, signal?: AbortSignal): Promise<OpenVideo> {
  if (media.data !== undefined) return openBytes(bytesOf(media.data), options, signal);
  const { path } = media;
  const { size, mtimeMs, ino } = await existing("video", path);
  return named(path, async () => {
    if (!isAnimation(await firstBytes(path))) {
      const video = await openFile(resolve(path), options, signal);
      const key = [resolve(path), size, mtimeMs, ino].join(" ");
      return { ...video, key, frames: (plan) => namedFrames(path, video.frames(plan)) };
    }
    checkBytes(size, options);
    return openAnimation(await readFile(path), options);
  });
}

async function openBytes(bytes: Uint8Array, options: MediaOptions, signal?: AbortSignal): Promise<OpenVideo> {
  if (isAnimation(bytes)) {
    checkBytes(bytes.byteLength, options);
    return openAnimation(bytes, options);
  }
  const folder = await mkdtemp(join(tmpdir(), "llama4-video-"));
  const remove = () => rm(folder, { recursive: true, force: true });
  try {
    const path = join(folder, "video");
    await writeFile(path, bytes, { signal });
    const video = await openFile(path, options, signal);
    return { ...video, key: await digest(bytes), close: remove };
  } catch (error) {
    await remove();
    throw error;
  }
}

async function* namedFrames<T>(path: string, frames: AsyncIterable<T>): AsyncGenerator<T> {
  const all = frames[Symbol.asyncIterator]();
  try {
    for (let next = await named(path, () => all.next()); !next.done; next = await named(path, () => all.next()))
      yield next.value;
  } finally {
    await all.return?.();
  }
}

async function firstBytes(path: string): Promise<Uint8Array> {
  const file = await open(path);
  try {
    const { buffer, bytesRead } = await file.read(new Uint8Array(512), 0, 512, 0);
    return buffer.subarray(0, bytesRead);
  } finally {
    await file.close();
  }
}

function isAnimation(head: Uint8Array): boolean {
  try {
    return ["GIF", "WebP"].includes(formatOf(head));
  } catch {
    return false; // no image at all: perhaps a video
  }
}

async function openAnimation(file: Uint8Array, options: MediaOptions): Promise<OpenVideo> {
  const { starts, duration } = await animationTimes(file);
  const { width, height } = await openImage({ data: file }, options);
  return {
    key: await digest(file),
    length: { width, height, duration, rate: starts.length / duration },
    async *frames({ times }) {
      for (const seconds of times) {
        const page = Math.max(
          0,
          starts.findLastIndex((start) => start <= seconds),
        );
        yield { seconds, pixels: await decodeImage(file, { ...options, page }) };
      }
    },
    close: async () => {},
  };
}

// Neither playlists nor scripts, which name other files, and nothing from a network.
const DEMUXERS = [
  ...["mov", "matroska", "avi", "mpeg", "mpegts", "mpegvideo", "m4v", "ogg", "flv", "asf", "h264", "hevc", "ivf"],
  ...["mxf", "nut", "dv", "rm", "mjpeg", "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "yuv4mpegpipe"],
];
const SAFE_INPUT = ["-protocol_whitelist", "file", "-format_whitelist", DEMUXERS.join(",")];

/** Between frames that lie farther apart than this, ffmpeg jumps; nearer ones it reaches by decoding on. */
const JUMP_SECONDS = 4; // a jump costs a start of ffmpeg and the frames since a key frame, some tenths of a second

async function openFile(path: string, options: MediaOptions, signal?: AbortSignal): Promise<Omit<OpenVideo, "key">> {
  const fields =
    "stream=width,height,avg_frame_rate,duration:stream_disposition=attached_pic:stream_side_data=rotation:format=duration";
  const probe = ["-v", "error", ...SAFE_INPUT, "-select_streams", "v", "-show_entries", fields, "-of", "json"];
  const chunks: Uint8Array[] = [];
  for await (const chunk of run("ffprobe", [...probe, `file:${path}`], signal)) chunks.push(chunk);
  const found = JSON.parse(Buffer.concat(chunks).toString()) as {
    streams?: {
      width?: number;
      height?: number;
      avg_frame_rate?: string;
      duration?: string;
      disposition?: { attached_pic?: number };
      side_data_list?: { rotation?: number }[];
    }[];
    format?: { duration?: string };
  };
  const stream = found.streams?.find(({ width, disposition }) => width && disposition?.attached_pic !== 1);
  if (!stream?.width || !stream.height) throw new RequestError("video: the file has no video stream; expected one");
  checkSize("video", stream.width, stream.height, options);
  const positive = (value: number) => (value > 0 && Number.isFinite(value) ? value : undefined);
  const [frames = 0, seconds = 1] = (stream.avg_frame_rate ?? "0/1").split("/").map(Number);
  const rate = positive(frames / seconds);
  const duration = positive(Number(stream.duration)) ?? positive(Number(found.format?.duration));
  const isOnItsSide = stream.side_data_list?.some(({ rotation = 0 }) => rotation % 180 !== 0);
  return {
    length: {
      width: isOnItsSide ? stream.height : stream.width,
      height: isOnItsSide ? stream.width : stream.height,
      ...{ duration, rate },
    },
    async *frames({ times, step }) {
      const isFar = step > JUMP_SECONDS;
      for (const part of isFar ? times.map((time) => [time]) : [times]) {
        let i = 0;
        for await (const pixels of framesAt(path, { times: part, step }, { duration, rate }, signal))
          yield { seconds: part[i++]!, pixels };
      }
    },
    close: async () => {},
  };
}

/** For each of some times, `step` seconds apart, the frame that is on the screen then: upright, in RGB. */
function framesAt(
  path: string,
  { times, step }: Pick<FramePlan, "times" | "step">,
  { duration, rate }: Pick<VideoLength, "duration" | "rate">,
  signal?: AbortSignal,
): AsyncGenerator<Pixels> {
  // ffmpeg drops what began before the place it jumps to, so it jumps to where the frame before has begun too.
  const from = Math.max(0, times[0]! - (rate ? 2 / rate : 2));
  const filters = [
    `setpts=PTS-${(times[0]! - from).toFixed(6)}/TB`, // the first of the times is 0
    ...(duration ? [`tpad=stop_mode=clone:stop_duration=${step}`] : []), // the last frame stays until the end that the file names
    `fps=${1 / step}:round=up:start_time=0`, // at each time the last frame that has begun
  ];
  const jump = from > 0 ? ["-ss", from.toFixed(6)] : []; // even a jump to 0 loses a frame without a time
  const input = ["-v", "error", "-nostdin", ...SAFE_INPUT, ...jump, "-i", `file:${path}`];
  const output = ["-map", "0:V:0", "-vf", filters.join(","), "-frames:v", String(times.length)];
  return ppmFrames(
    run("ffmpeg", [...input, ...output, "-pix_fmt", "rgb24", "-c:v", "ppm", "-f", "image2pipe", "-"], signal),
  );
}

const PPM_HEADER_BYTES = 32; // "P6\n", two numbers, "255\n": never more

/** The images in a stream of binary PPM files, one behind the other, in chunks of any size. */
export async function* ppmFrames(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Pixels> {
  const parts: Uint8Array[] = [];
  let held = 0; // bytes of the parts
  let needed = 1; // before it is worth to look again
  for await (const chunk of chunks) {
    parts.push(chunk);
    held += chunk.length;
    while (held >= needed) {
      const bytes = parts.length === 1 ? parts[0]! : Buffer.concat(parts);
      parts.splice(0, parts.length, bytes);
      const head = Buffer.from(bytes.subarray(0, PPM_HEADER_BYTES)).toString("latin1");
      const header = /^P6\n(\d+) (\d+)\n255\n/.exec(head);
      if (!header && held >= PPM_HEADER_BYTES)
        throw new Error("ffmpeg wrote something else than the PPM that it was asked for");
      const [width, height] = [Number(header?.[1]), Number(header?.[2])];
      needed = header ? header[0].length + width * height * 3 : held + 1;
      if (!header || held < needed) break;
      yield { data: bytes.subarray(header[0].length, needed), width, height };
      parts.splice(0, parts.length, bytes.subarray(needed));
      held -= needed;
      needed = 1;
    }
  }
}

/** What a program writes on its standard output. It is killed when the reader leaves or the signal says so. */
async function* run(program: string, args: readonly string[], signal?: AbortSignal): AsyncGenerator<Uint8Array> {
  signal?.throwIfAborted();
  const child = spawn(program, args, { stdio: ["ignore", "pipe", "pipe"] });
  const kill = () => child.kill("SIGKILL");
  signal?.addEventListener("abort", kill);
  let complaint = "";
  child.stderr.on("data", (text: Buffer) => {
    complaint = (complaint + text.toString()).slice(-2000);
  });
  const ended = new Promise<number | null>((resolve, reject) => {
    child.on("close", resolve);
    child.on("error", (error: NodeJS.ErrnoException) =>
      reject(error.code === "ENOENT" ? new RequestError(missing(program), { cause: error }) : error),
    );
  });
  ended.catch(() => {}); // it is awaited below, but perhaps only after it has failed
  try {
    for await (const chunk of child.stdout) yield chunk as Uint8Array;
    const status = await ended;
    signal?.throwIfAborted();
    if (status !== 0) {
      const why =
        complaint
          .trim()
          .split("\n")
          .at(-1)
          ?.replace(/^.*file:\S*: /, "") || `status ${status}`;
      throw new RequestError(
        `video: ${program} cannot read it (${why}); expected a whole file that ffmpeg decodes, no playlist or script that names others`,
      );
    }
  } finally {
    signal?.removeEventListener("abort", kill);
    kill();
  }
}

const missing = (program: string) =>
  `video needs the programs ffprobe and ffmpeg, and ${program} is not on PATH; install them (Debian: apt-get install ffmpeg, macOS: brew install ffmpeg)`;
