// Video files to frames, by the programs ffprobe and ffmpeg; animated GIF and WebP by the image decoder.

import { mkdtemp, open, readFile, rm, stat, writeFile } from "node:fs/promises";
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
import type { FramePlan } from "./video.ts";

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

// An animation is decoded from its beginning for each frame that is wanted, and nobody can interrupt that.
const MOST_FRAMES = 100_000; // sharp knows no page beyond
const MOST_PIXELS = 2e9; // some seconds

async function openAnimation(file: Uint8Array, options: MediaOptions): Promise<OpenVideo> {
  const { starts, duration } = await animationTimes(file);
  const { width, height } = await openImage({ data: file }, options);
  if (starts.length > MOST_FRAMES || starts.length * width * height > MOST_PIXELS)
    throw new RequestError(
      `video: the animation has ${starts.length.toLocaleString("en")} frames of ${width.toLocaleString("en")} × ${height.toLocaleString("en")} pixels; ` +
        `expected at most ${MOST_FRAMES.toLocaleString("en")} frames, and ${MOST_PIXELS.toLocaleString("en")} pixels in all`,
    );
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

interface Stream {
  readonly index: number;
  readonly width?: number;
  readonly height?: number;
  readonly sample_aspect_ratio?: string;
  readonly avg_frame_rate?: string;
  readonly start_time?: string;
  readonly duration?: string;
  readonly tags?: { readonly DURATION?: string };
  readonly disposition?: { readonly attached_pic?: number };
  readonly side_data_list?: readonly { readonly rotation?: number }[];
}

interface Container {
  readonly format_name?: string;
  readonly nb_streams?: number;
  readonly start_time?: string;
  readonly duration?: string;
}

const FIELDS = [
  "stream=index,width,height,sample_aspect_ratio,avg_frame_rate,start_time,duration",
  "stream_tags=DURATION:stream_disposition=attached_pic:stream_side_data=rotation",
  "format=format_name,nb_streams,start_time,duration",
].join(":");

const positive = (value: number) => (value > 0 && Number.isFinite(value) ? value : undefined);

async function openFile(path: string, options: MediaOptions, signal?: AbortSignal): Promise<Omit<OpenVideo, "key">> {
  const probe = ["-v", "error", ...SAFE_INPUT, "-select_streams", "v", "-show_entries", FIELDS, "-of", "json"];
  const chunks: Uint8Array[] = [];
  for await (const chunk of run("ffprobe", [...probe, `file:${path}`], signal)) chunks.push(chunk);
  const found = JSON.parse(Buffer.concat(chunks).toString()) as { streams?: Stream[]; format?: Container };
  const { format = {} } = found;
  const stream = found.streams?.find(({ width, disposition }) => width && disposition?.attached_pic !== 1);
  const size = stream && upright(stream);
  if (!size) throw new RequestError("video: the file has no video stream; expected one");
  checkSize("video", size.width, size.height, options);

  const [frames = 0, seconds = 1] = (stream.avg_frame_rate ?? "0/1").split("/").map(Number);
  const start = Number(format.start_time) || 0;
  const late = Math.max(0, (Number(stream.start_time) || 0) - start); // pictures may begin after the sound
  const own = positive(Number(stream.duration));
  const stated = own === undefined ? positive(endOfTag(stream.tags?.DURATION) - start) : own + late;
  const whole = format.nb_streams === 1 ? positive(Number(format.duration)) : undefined;
  const isRead = (stated ?? whole) === undefined || (await stat(path)).size <= SCAN_BYTES;
  const packets = isRead
    ? await scan(path, stream.index, { start, rate: positive(frames / seconds) }, signal)
    : undefined;
  const duration = stated ?? whole ?? packets?.end;
  if (duration === undefined)
    throw new RequestError(
      "video: the file does not say how long it is, and it has too many frames to count; expected one that says it " +
        "(`ffmpeg -i FILE -c copy NEW.mp4` writes one)",
    );
  // Matroska says nothing of how long a frame stands, so a last one may stand until the end.
  const rate = positive(frames / seconds) ?? (packets && packets.count / duration);
  const isIndexed = /mov|matroska/.test(format.format_name ?? "");
  const isShort =
    !/matroska/.test(format.format_name ?? "") && packets && packets.end + Math.max(1, 2 / (rate ?? 2)) < duration;
  if (packets && (packets.isCut || isShort))
    throw new RequestError(
      `video: ${packets.count.toLocaleString("en")} frames are there, up to ${packets.end.toFixed(1)} s of ${duration.toFixed(1)} s, ` +
        "and the file seems to be cut off; expected a whole file",
    );
  return {
    length: { width: size.width, height: size.height, duration, rate },
    async *frames({ times, step }) {
      const isFar = step > JUMP_SECONDS;
      const scale = size.isStretched ? size : undefined;
      let i = 0;
      for (const part of isFar ? times.map((time) => [time]) : [times]) {
        const from = isFar ? (isIndexed ? part[0]! : before(part[0]!, packets?.keys)) : 0;
        const staysOn = isFar || packets !== undefined;
        for await (const pixels of framesAt(path, { times: part, step, from, staysOn, scale }, signal))
          yield { seconds: times[i++]!, pixels };
        if (i < times.length && (!isFar || times[i - 1] !== part[0]))
          throw new RequestError(
            `video: ${i} of the ${times.length} frames that are wanted of its ${duration.toFixed(1)} s can be read, ` +
              "and the file seems to be cut off; expected a whole file",
          );
      }
    },
    close: async () => {},
  };
}

/** The size on the screen: turned upright, and pixels that are not square stretched along one side. */
function upright({ width, height, sample_aspect_ratio = "", side_data_list = [] }: Stream) {
  if (!width || !height) return undefined;
  const [across = 1, down = 1] = sample_aspect_ratio.split(":").map(Number);
  const aspect = positive(across / down) ?? 1; // "0:1" is unknown
  const [w, h] = [Math.round(width * Math.max(1, aspect)), Math.round(height * Math.max(1, 1 / aspect))];
  const isOnItsSide = side_data_list.some(({ rotation = 0 }) => rotation % 180 !== 0);
  const isStretched = w !== width || h !== height;
  return isOnItsSide ? { width: h, height: w, isStretched } : { width: w, height: h, isStretched };
}

/** Seconds of Matroska's "00:01:02.003000000", which is when the stream ends. */
function endOfTag(text = ""): number {
  const [hours = NaN, minutes = NaN, seconds = NaN] = text.split(":").map(Number);
  return hours * 3600 + minutes * 60 + seconds;
}

// ---- packets ----

const SCAN_BYTES = 4e9; // to find the frames' times the whole file is read, some seconds; a longer one is believed
const SCAN_PACKETS = 2e6; // 9 hours at 60 frames a second

interface Packets {
  readonly count: number;
  /** Seconds: when the last frame ends. */
  readonly end: number;
  /** Seconds: when the key frames begin, in the file's order. */
  readonly keys: readonly number[];
  /** Whether the file breaks off. */
  readonly isCut: boolean;
}

/** What the packets' headers say, without decoding; undefined where they are too many. */
async function scan(
  path: string,
  stream: number,
  { start, rate }: { start: number; rate: number | undefined },
  signal?: AbortSignal,
): Promise<Packets | undefined> {
  const fields = ["-show_entries", "packet=pts_time,duration_time,flags", "-of", "csv=p=0"];
  const probe = ["-v", "error", ...SAFE_INPUT, "-select_streams", String(stream), ...fields, `file:${path}`];
  const frame = rate ? 1 / rate : 0;
  const keys: number[] = [];
  let count = 0;
  let end = 0;
  let rest = "";
  let complaints = "";
  const read = (line: string) => {
    const [time = "", long, flags = ""] = line.split(",");
    if (time === "") return; // a packet's side data has lines of its own
    const at = time === "N/A" ? count * frame : Number(time) - start;
    count++;
    end = Math.max(end, at + (positive(Number(long)) ?? frame));
    if (flags.startsWith("K")) keys.push(at);
  };
  const heard = (text: string) => {
    complaints = (complaints + text).slice(-2000);
  };
  for await (const chunk of run("ffprobe", probe, signal, heard)) {
    const lines = (rest + Buffer.from(chunk).toString("latin1")).split("\n"); // numbers and flags: ASCII
    rest = lines.pop()!;
    for (const line of lines) read(line);
    if (count > SCAN_PACKETS) return undefined;
  }
  read(rest);
  const isCut = /partial file|ended prematurely/.test(complaints); // of an MP4; of a Matroska file
  return end > 0 ? { count, end, keys, isCut } : undefined;
}

/** From where a file without an index is read for the frame at `time`: a second before its key frame begins. */
function before(time: number, keys: readonly number[] = []): number {
  return Math.max(0, (keys.findLast((key) => key <= time) ?? time - 10) - 1);
}

interface Sampling extends Pick<FramePlan, "times" | "step"> {
  /** Seconds: ffmpeg begins with the key frame before it, or with the first. */
  readonly from: number;
  /** Whether the last frame may stand for as long as it takes; else for a step. */
  readonly staysOn: boolean;
  readonly scale: Readonly<Record<"width" | "height", number>> | undefined;
}

/** For each of some times, `step` seconds apart, the last frame that has begun then: upright, in RGB. */
function framesAt(path: string, { times, step, from, staysOn, scale }: Sampling, signal?: AbortSignal) {
  const filters = [
    `setpts=PTS-${(times[0]! - from).toFixed(6)}/TB`, // the first of the times is 0
    `tpad=stop_mode=clone:${staysOn ? "stop=-1" : `stop_duration=${step}`}`, // the last frame stays until the end
    `fps=${1 / step}:round=up:start_time=0`, // at each time the last frame that has begun
    ...(scale ? [`scale=${scale.width}:${scale.height}`, "setsar=1"] : []),
  ];
  // Without "noaccurate" ffmpeg drops the frames that began before the place it jumps to, though one is on the screen
  // there. Even a jump to 0 loses a frame without a time.
  const jump = from > 0 ? ["-noaccurate_seek", "-ss", from.toFixed(6)] : [];
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
async function* run(
  program: string,
  args: readonly string[],
  signal?: AbortSignal,
  heard?: (complaint: string) => void,
): AsyncGenerator<Uint8Array> {
  const { spawn } = await import("node:child_process"); // not before a video comes: it brings all of Node's network
  signal?.throwIfAborted();
  const child = spawn(program, args, { stdio: ["ignore", "pipe", "pipe"] });
  const kill = () => child.kill("SIGKILL");
  signal?.addEventListener("abort", kill);
  let complaint = "";
  child.stderr.on("data", (text: Buffer) => {
    complaint = (complaint + text.toString()).slice(-2000);
    heard?.(text.toString());
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
