// Video files to frames, by the programs ffprobe and ffmpeg; animated GIF and WebP by the image decoder.

import { spawn } from "node:child_process";
import { mkdtemp, open, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { RequestError } from "../tensor/errors.ts";
import type { Media } from "./chat-format.ts";
import { animationTimes, bytesOf, decodeImage, existing, formatOf } from "./decode-image.ts";
import type { MediaOptions, OpenVideo } from "./media.ts";
import type { FramePlan } from "./video.ts";

/** A video part: its file stays open until it is closed. */
export async function openVideo(media: Media, options: MediaOptions, signal?: AbortSignal): Promise<OpenVideo> {
  const given = media.data === undefined ? undefined : bytesOf(media.data);
  if (media.path !== undefined) await existing("video", media.path);
  const head = given ?? (await firstBytes(media.path!));
  if (isAnimation(head)) return openAnimation(given ?? (await readFile(media.path!)), options);
  if (media.path !== undefined) return openFile(resolve(media.path), signal);
  const folder = await mkdtemp(join(tmpdir(), "llama4-video-"));
  const remove = () => rm(folder, { recursive: true, force: true });
  try {
    const path = join(folder, "video");
    await writeFile(path, given!, { signal });
    const video = await openFile(path, signal);
    return { ...video, close: remove };
  } catch (error) {
    await remove();
    throw error;
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
  const { width, height } = await decodeImage(file, options);
  return {
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
const JUMP_SECONDS = 4;

async function openFile(path: string, signal?: AbortSignal): Promise<OpenVideo> {
  const fields = "stream=width,height,avg_frame_rate,duration:stream_disposition=attached_pic:format=duration";
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
    }[];
    format?: { duration?: string };
  };
  const stream = found.streams?.find(({ width, disposition }) => width && disposition?.attached_pic !== 1);
  if (!stream?.width || !stream.height) throw new RequestError("video: the file has no video stream; expected one");
  const positive = (value: number) => (value > 0 && Number.isFinite(value) ? value : undefined);
  const [frames = 0, seconds = 1] = (stream.avg_frame_rate ?? "0/1").split("/").map(Number);
  return {
    length: {
      width: stream.width,
      height: stream.height,
      duration: positive(Number(stream.duration)) ?? positive(Number(found.format?.duration)),
      rate: positive(frames / seconds),
    },
    frames: (plan) => (plan.step > JUMP_SECONDS ? jumping(path, plan, signal) : straightOn(path, plan, signal)),
    close: async () => {},
  };
}

async function* straightOn(path: string, { times, step }: FramePlan, signal?: AbortSignal) {
  const start = times[0]!;
  // up: at each time the frame that is on the screen then, not one that will be
  const filter = `setpts=PTS-STARTPTS,fps=${1 / step}:round=up:start_time=0`;
  let i = 0;
  for await (const pixels of images(path, start, ["-vf", filter, "-frames:v", String(times.length)], signal))
    yield { seconds: times[i++] ?? start + i * step, pixels };
}

async function* jumping(path: string, { times }: FramePlan, signal?: AbortSignal) {
  for (const seconds of times)
    for await (const pixels of images(path, seconds, ["-frames:v", "1"], signal)) yield { seconds, pixels };
}

/** What ffmpeg gives from a time on, upright and in RGB. */
async function* images(path: string, from: number, args: readonly string[], signal?: AbortSignal) {
  const input = ["-v", "error", "-nostdin", ...SAFE_INPUT, "-ss", from.toFixed(3), "-i", `file:${path}`];
  const output = ["-map", "0:V:0", ...args, "-pix_fmt", "rgb24", "-c:v", "ppm", "-f", "image2pipe", "-"];
  let held: Uint8Array = new Uint8Array();
  const parts: Uint8Array[] = [];
  let length = 0;
  let needed = 32; // of a header, then of a picture
  for await (const chunk of run("ffmpeg", [...input, ...output], signal)) {
    parts.push(chunk);
    length += chunk.length;
    while (length >= needed) {
      held = parts.length === 1 ? parts[0]! : Buffer.concat(parts);
      const header = /^P6\n(\d+) (\d+)\n255\n/.exec(Buffer.from(held.buffer, held.byteOffset, 32).toString("latin1"));
      if (!header) throw new Error("ffmpeg wrote something else than the PPM that it was asked for");
      const [width, height] = [Number(header[1]), Number(header[2])];
      const end = header[0].length + width * height * 3;
      parts.splice(0, parts.length, held);
      if (length < end) {
        needed = end;
        break;
      }
      yield { data: held.subarray(header[0].length, end), width, height };
      parts.splice(0, parts.length, held.subarray(end));
      length -= end;
      needed = 32;
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
      throw new RequestError(`video: ${program} cannot read it (${why}); expected a whole file that ffmpeg decodes`);
    }
  } finally {
    signal?.removeEventListener("abort", kill);
    kill();
  }
}

const missing = (program: string) =>
  `video needs the programs ffprobe and ffmpeg, and ${program} is not on PATH; install them (Debian: apt-get install ffmpeg, macOS: brew install ffmpeg)`;
