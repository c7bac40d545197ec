// Documents to learn from: a file of JSON lines, and beside it the pixels of their images.
//
//     {"text": "…"}                                                      a text
//     {"parts": ["A cat: ", {"image": 7}, …]}                            text and images
//     {"messages": [{"role": "user", "content": ["What is it?", {"image": 7}]},
//                   {"role": "assistant", "content": "A cat."}]}         a chat
//
// {"image": i} is tile i of the tiles file; {"image": i, "rows": R, "cols": C} its R·C tiles from i on and the global one
// behind them. {"video": [i, j, …], "times": [0, 0.5, …]} are frames of a tile each, and their seconds.
//
// The tiles file: "L4TILES\n", then S and 0 as u32, then tiles of bytes [3, S, S].

import { type Message, metaFormat, type PlainPart, type Role } from "../prompt/chat-format.ts";
import { type Canvas, imageTokens } from "../prompt/image.ts";
import { encodeParts, expandImages } from "../prompt/media.ts";
import type { Tokenizer } from "../prompt/tokenizer.ts";
import { timestamp } from "../prompt/video.ts";
import { TrainingError } from "../tensor/errors.ts";
import type { ByteSource } from "../tensor/tensor.ts";

/** A document as the model sees it. */
export interface Example {
  readonly tokens: Int32Array; // [T]
  /** 1 where the token is one that the model has to predict. */
  readonly counts: Uint8Array; // [T]
  /** The tiles that its `<|patch|>` tokens stand for, in order. */
  readonly tiles: readonly number[];
  /** It may be cut anywhere: a text. */
  readonly divisible: boolean;
}

/** What of a document is learnt: all text, or in chats what the assistant says. */
export type Loss = "text" | "answers";

export interface EncodeOptions {
  readonly loss: Loss;
  readonly tokensPerTile: number;
}

const scanBytes = 1 << 20;

/** The documents of a file. Opening it reads it once, for where its lines begin. */
export class Documents {
  readonly name: string;
  readonly length: number;
  readonly #source: ByteSource;
  readonly #starts: Float64Array; // of each line of the file, and where the last ends
  readonly #lines: Uint32Array; // of the documents
  readonly #tiles: TilesFile | undefined;

  private constructor(source: ByteSource, starts: Float64Array, lines: Uint32Array, tiles: TilesFile | undefined) {
    this.name = source.name;
    this.length = lines.length;
    this.#lines = lines;
    this.#source = source;
    this.#starts = starts;
    this.#tiles = tiles;
  }

  /**
   * The documents of a file of JSON lines, with the tiles that they name; both sources stay the caller's to close. Throws
   * TrainingError for an empty file and for what is no file of tiles; a wrong line is found when it is read.
   */
  static async open(source: ByteSource, tiles?: ByteSource): Promise<Documents> {
    const starts = [0];
    for (let at = 0; at < source.byteLength; at += scanBytes) {
      const bytes = await source.read(at, Math.min(scanBytes, source.byteLength - at));
      for (let i = bytes.indexOf(10); i >= 0; i = bytes.indexOf(10, i + 1)) starts.push(at + i + 1);
    }
    if (starts.at(-1) !== source.byteLength) starts.push(source.byteLength); // the last line may lack its end
    if (starts.length === 1) throw new TrainingError(`${source.name}: it is empty; expected a document on each line`);
    const lines = Uint32Array.from({ length: starts.length - 1 }, (_, line) => line);
    return new Documents(source, Float64Array.from(starts), lines, tiles && (await TilesFile.open(tiles)));
  }

  /** Every n-th document apart from the others. */
  split(n: number): { readonly learnt: Documents; readonly heldOut: Documents } {
    const of = (isHeldOut: boolean) => {
      const lines = this.#lines.filter((_, i) => (i % n === n - 1) === isHeldOut);
      return new Documents(this.#source, this.#starts, lines, this.#tiles);
    };
    return { learnt: of(false), heldOut: of(true) };
  }

  /** Document i as tokens. Throws TrainingError, with the place in the file, for what is none. */
  async example(i: number, tokenizer: Tokenizer, options: EncodeOptions): Promise<Example> {
    const record = await this.record(i);
    try {
      return encodeRecord(record, tokenizer, options, this.#tiles);
    } catch (error) {
      throw this.#wrong(i, (error as Error).message);
    }
  }

  /** Document i as it stands in the file. Throws TrainingError for what is no JSON. */
  async record(i: number): Promise<unknown> {
    const line = this.#lines[i]!;
    const start = this.#starts[line]!;
    const bytes = await this.#source.read(start, this.#starts[line + 1]! - start);
    try {
      return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
    } catch (error) {
      throw this.#wrong(i, error instanceof TypeError ? "no UTF-8 text" : `no JSON (${(error as Error).message})`);
    }
  }

  #wrong(i: number, found: string): TrainingError {
    const line = this.#lines[i]!;
    return new TrainingError(
      `${this.name}: line ${line + 1}, at byte ${this.#starts[line]}: ${found}; expected {"text"}, {"parts"} or {"messages"} as JSON (build the file again)`,
    );
  }

  /** Text of document i, for learning a vocabulary. Throws TrainingError for what is no JSON. */
  async text(i: number): Promise<string> {
    return [...textsIn(await this.record(i))].join("\n");
  }

  /** The pixels of tiles, one behind the other, as bytes `[N, 3, S, S]`. */
  async pixels(tiles: readonly number[]): Promise<Uint8Array> {
    return this.#tiles ? this.#tiles.read(tiles) : new Uint8Array(0);
  }

  /** Pixels along a side of a tile; absent where no document has an image. */
  get tileSize(): number | undefined {
    return this.#tiles?.side;
  }

  /** How many tiles there are. */
  get tileCount(): number {
    return this.#tiles?.count ?? 0;
  }
}

const magic = "L4TILES\n";
const headerBytes = 16;

/** What a tiles file begins with. */
export function tilesHeader(side: number): Uint8Array {
  const header = new Uint8Array(headerBytes);
  header.set(new TextEncoder().encode(magic));
  new DataView(header.buffer).setUint32(8, side, true);
  return header;
}

class TilesFile {
  readonly side: number;
  readonly count: number;
  readonly #source: ByteSource;

  private constructor(source: ByteSource, side: number) {
    this.#source = source;
    this.side = side;
    this.count = (source.byteLength - headerBytes) / (3 * side ** 2);
  }

  static async open(source: ByteSource): Promise<TilesFile> {
    const header = source.byteLength >= headerBytes ? await source.read(0, headerBytes) : new Uint8Array(headerBytes);
    const side = new DataView(header.buffer, header.byteOffset).getUint32(8, true);
    const tiles = new TilesFile(source, side);
    if (new TextDecoder().decode(header.subarray(0, 8)) !== magic || !Number.isInteger(tiles.count))
      throw new TrainingError(
        `${source.name}: ${source.byteLength} bytes are no file of tiles, or one cut off; expected "L4TILES", the side, and whole tiles (build the file again)`,
      );
    return tiles;
  }

  async read(tiles: readonly number[]): Promise<Uint8Array> {
    const bytes = 3 * this.side ** 2;
    const out = new Uint8Array(tiles.length * bytes);
    for (const [i, tile] of tiles.entries())
      out.set(await this.#source.read(headerBytes + tile * bytes, bytes), i * bytes);
    return out;
  }
}

interface SeenImage extends Canvas {
  readonly tiles: readonly number[];
}

function encodeRecord(
  record: unknown,
  tokenizer: Tokenizer,
  { loss, tokensPerTile }: EncodeOptions,
  tiles: TilesFile | undefined,
): Example {
  const images: SeenImage[] = [];
  const config = { tokensPerTile };
  const expand = (prompt: Parameters<typeof expandImages>[0]) => expandImages(prompt, images, tokenizer, config).ids;
  if (!isRecord(record)) throw new Error(`${JSON.stringify(record)?.slice(0, 60)} is no object`);
  if (Array.isArray(record["messages"])) {
    const messages = record["messages"].map((message) => plainMessage(message, images, tiles));
    const { encode } = metaFormat(tokenizer);
    const tokens = expand(encode(messages, { addGenerationPrompt: false }));
    const counts = new Uint8Array(tokens.length);
    if (loss === "text")
      return { tokens, counts: allText(tokens, tokenizer), tiles: tilesOf(images), divisible: false };
    for (const [i, { role }] of messages.entries()) {
      if (role !== "assistant") continue;
      if (i === 0) throw new Error("the first message is the assistant's");
      const upTo = (n: number, addGenerationPrompt: boolean) => {
        const prompt = encode(messages.slice(0, n), { addGenerationPrompt });
        return expandImages(prompt, images.slice(0, prompt.images.length), tokenizer, config).ids.length;
      };
      counts.fill(1, upTo(i, true), upTo(i + 1, false));
    }
    if (!counts.includes(1)) throw new Error("no message is the assistant's: there is nothing to learn");
    return { tokens, counts, tiles: tilesOf(images), divisible: false };
  }
  const given = typeof record["text"] === "string" ? [record["text"]] : record["parts"];
  if (!Array.isArray(given)) throw new Error(`an object of ${Object.keys(record).slice(0, 5).join(", ") || "nothing"}`);
  const parts = plainParts(given, images, tiles);
  const body = expand(encodeParts(parts, tokenizer, { bos: true }));
  const tokens = new Int32Array(body.length + 1);
  tokens.set(body);
  tokens[body.length] = tokenizer.specialId("<|end_of_text|>");
  return { tokens, counts: allText(tokens, tokenizer), tiles: tilesOf(images), divisible: images.length === 0 };
}

/** Every token but the first and those that stand for images: nobody has to say what the next patch is. */
function allText(tokens: Int32Array, tokenizer: Tokenizer): Uint8Array {
  const names = new Set(imageTokens({ rows: 2, cols: 2 }, 1).map(([name]) => name)); // all there are
  const silent = new Set([...names].map((name) => tokenizer.special.get(name)));
  return Uint8Array.from(tokens, (id, i) => (i > 0 && !silent.has(id) ? 1 : 0));
}

const tilesOf = (images: readonly SeenImage[]) => images.flatMap((image) => image.tiles);

function plainMessage(message: unknown, images: SeenImage[], tiles: TilesFile | undefined): Message<PlainPart> {
  if (!isRecord(message)) throw new Error("a message is no object");
  const { role, content } = message;
  return {
    role: role as Role, // the chat format refuses others
    content: typeof content === "string" ? content : plainParts(content, images, tiles),
  };
}

/** Parts as the chat format takes them; their images are added to `images`. */
function plainParts(parts: unknown, images: SeenImage[], file: TilesFile | undefined): PlainPart[] {
  if (!Array.isArray(parts))
    throw new Error(`the content is ${JSON.stringify(parts)?.slice(0, 60)}, no text and no list`);
  const picture = (rows: unknown, cols: unknown, first: unknown): PlainPart => {
    const count = isCount(rows) && isCount(cols) ? rows * cols + (rows * cols > 1 ? 1 : 0) : 0;
    const end = Number(first) + count;
    if (count === 0 || !Number.isInteger(first) || Number(first) < 0 || end > (file?.count ?? 0))
      throw new Error(`an image at tile ${first} of ${rows} × ${cols} among ${file?.count ?? 0}`);
    images.push({
      rows: Number(rows),
      cols: Number(cols),
      tiles: Array.from({ length: count }, (_, i) => Number(first) + i),
    });
    return { type: "image" };
  };
  return parts.flatMap((part: unknown): PlainPart[] => {
    if (typeof part === "string") return [{ type: "text", text: part }];
    if (!isRecord(part)) throw new Error("a part is neither a text nor an object");
    if ("image" in part) return [picture(part["rows"] ?? 1, part["cols"] ?? 1, part["image"])];
    const { video, times } = part;
    if (!Array.isArray(video) || !Array.isArray(times) || video.length !== times.length)
      throw new Error("a part is neither a text, an image nor a video with a time for each frame");
    return video.flatMap((tile, i) => [{ type: "text", text: timestamp(Number(times[i])) }, picture(1, 1, tile)]);
  });
}

const isCount = (n: unknown): n is number => Number.isInteger(n) && Number(n) >= 1 && Number(n) <= 16;

const isRecord = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** The strings of a record, wherever they stand, but for the names of roles. */
function* textsIn(value: unknown): Generator<string> {
  if (typeof value === "string") yield value;
  else if (Array.isArray(value)) for (const inner of value) yield* textsIn(inner);
  else if (isRecord(value)) for (const [key, inner] of Object.entries(value)) if (key !== "role") yield* textsIn(inner);
}
