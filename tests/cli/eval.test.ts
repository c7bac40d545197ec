// `llama4 eval` on small random models: figures that other commands give by another way.

import { readFileSync, writeFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { logProbability } from "../../src/eval/likelihood.ts";
import { tilesHeader } from "../../src/train/documents.ts";
import { llama4, objectOf } from "./llama4.ts";
import { initTiny, safetensors, temporaryPlace } from "./models.ts";

const place = temporaryPlace();
const [model, seeing] = [place.at("model"), place.at("seeing")];
const side = 8;
const exact = ["--kv-dtype", "f32"];

function documents(name: string, records: readonly object[], tiles = 0): string {
  writeFileSync(place.at(`${name}.jsonl`), records.map((record) => `${JSON.stringify(record)}\n`).join(""));
  const pixels = Uint8Array.from({ length: tiles * 3 * side ** 2 }, (_, i) => (i * 97) % 251);
  if (tiles > 0) writeFileSync(place.at(`${name}.tiles`), Buffer.concat([tilesHeader(side), pixels]));
  return place.at(`${name}.jsonl`);
}

const chat = (content: unknown, answer: string, accepted?: string[]) => ({
  messages: [
    { role: "user", content },
    { role: "assistant", content: answer },
  ],
  ...(accepted && { accepted }),
});

interface Evaluated {
  readonly files: Readonly<Record<string, Readonly<Record<string, unknown>>>>;
  readonly experts: readonly { readonly layer: number; readonly busiest: number; readonly least: number }[];
}

async function evaluated(...args: string[]): Promise<Evaluated> {
  return objectOf(await llama4(["eval", ...args, "--json"])) as unknown as Evaluated;
}

/** What eval says of one file. */
async function figures(what: string, file: string, ...args: string[]) {
  return (await evaluated(what, file, ...args)).files[file]!;
}

/** Nats of tokens `from` … of a prompt, by the logits that are written for comparing. */
async function natsBy(args: readonly string[], from: number): Promise<{ nats: number; tokens: number[] }> {
  const out = place.at("logits.safetensors");
  const { tokens, shape } = objectOf(
    await llama4(["logits", "--model", model, ...args, "--out", out, "--fast", ...exact, "--json"]),
  ) as { tokens: number[]; shape: [number, number] };
  const logits = new Float32Array(safetensors(out).bytes("logits"));
  let nats = 0;
  for (let i = from; i < tokens.length; i++)
    nats -= logProbability(logits.subarray((i - 1) * shape[1], i * shape[1]), tokens[i]!);
  return { nats, tokens };
}

beforeAll(async () => {
  await initTiny(model);
  await initTiny(
    seeing,
    ...["--vision", "on", "--vision-layers", "1", "--vision-dim", "16", "--vision-heads", "2"],
    ...["--vision-tile", "28"],
  );
});
afterAll(() => place.remove());

describe("eval perplexity", () => {
  const text = "Call me Ishmael. Some years ago – never mind how long – I went to sea.";

  it("is that of the logits, in nats a token and bits a byte", async () => {
    const file = documents("text", [{ text }]);
    const found = await figures("perplexity", file, "--model", model, ...exact);
    const { nats, tokens } = await natsBy(["--raw", "--bos", "--prompt", text], 1);
    const { loss, perplexity, bitsPerByte, ...counts } = found as Record<string, number>;
    expect(counts).toEqual({ tokens: tokens.length - 1, bytes: Buffer.byteLength(text) });
    expect(loss).toBeCloseTo(nats / (tokens.length - 1), 5);
    expect(perplexity).toBeCloseTo(Math.exp(loss!), 6);
    expect(bitsPerByte).toBeCloseTo(nats / Math.LN2 / Buffer.byteLength(text), 4);
  });

  it("of a plain text is that of its document, and says how the experts shared the work", async () => {
    writeFileSync(place.at("plain.txt"), text);
    const [plain, file] = [place.at("plain.txt"), documents("text", [{ text }])];
    const json = await evaluated("perplexity", plain, file, "--model", model);
    expect(json.files[plain]).toEqual(json.files[file]);
    const { experts } = json;
    expect(experts.map(({ layer }) => layer)).toEqual([0, 1]);
    for (const { busiest, least } of experts) {
      expect(busiest).toBeGreaterThanOrEqual(1 / 4);
      expect(least).toBeLessThanOrEqual(1 / 4);
    }
  });

  it("with a window begins anew in each, and foretells as many tokens", async () => {
    const file = documents("text", [{ text }]);
    const [whole, cut] = [
      await figures("perplexity", file, "--model", model),
      await figures("perplexity", file, "--model", model, "--window", "8"),
    ];
    expect(cut["tokens"]).toBe(whole["tokens"]);
    expect(cut["loss"]).not.toBe(whole["loss"]);
  });

  it("refuses a chat by its line", async () => {
    const { status, stderr } = await llama4(["eval", "perplexity", documents("chats", [chat("a", "b")]), "-m", model]);
    expect(status).toBe(2);
    expect(stderr).toContain('line 1 is no text; expected {"text": "…"}');
  });
});

describe("eval answers", () => {
  const question = "What is it?";
  const says = async (of: string) => {
    const asked = ["--prompt", question, "--temperature", "0", "--max-tokens", "12", "--json"];
    return String(objectOf(await llama4(["generate", "--model", of, ...asked]))["text"]);
  };

  it("calls right what generate says, whatever stands in accepted beside it", async () => {
    const said = await says(model);
    const file = documents("right", [
      chat(question, said),
      chat(question, "Something else.", [said]),
      chat(question, "Something else."),
      chat(question, `It is seen: ${said}`),
    ]);
    const found = await figures("answers", file, "--model", model, "--max-tokens", "12");
    expect(found["right"]).toMatchObject({ right: 2, of: 4 });
    expect(found["final"]).toMatchObject({ right: { right: 3, of: 4 }, commonest: 3 / 4 });
    expect(found["withoutPictures"]).toBeUndefined();
    expect(found["commonest"]).toBeCloseTo(1 / 2, 12);
  });

  it("costs an answer as the logits of the whole chat do, its end included", async () => {
    const answer = "It is a lion.";
    const file = documents("cost", [chat(question, answer)]);
    const found = await figures("answers", file, "--model", model, ...exact);
    const prompt = await natsBy(["--prompt", question], 1);
    const own = await natsBy(["--raw", "--prompt", answer], 1);
    const { added_tokens } = JSON.parse(readFileSync(`${model}/tokenizer.json`, "utf8"));
    const end = added_tokens.find(({ content }: { content: string }) => content === "<|eot|>").id;
    const ids = [...prompt.tokens, ...own.tokens, end];
    const { nats } = await natsBy(["--tokens", ids.join(",")], prompt.tokens.length);
    expect(found["bitsPerByte"]).toBeCloseTo(nats / Math.LN2 / answer.length, 4);
  });

  it("finds among the k likeliest all of a file that has k answers, and fewer of more", async () => {
    const file = documents(
      "top",
      ["one", "two", "three", "four", "five", "six"].map((word) => chat(question, word)),
    );
    const all = await figures("answers", file, "--model", model, "--top", "6");
    expect(all["top"]).toMatchObject({ right: 6, of: 6 });
    const some = await figures("answers", file, "--model", model, "--top", "2");
    expect(some["top"]).toMatchObject({ right: 2, of: 6 }); // all ask the same: two answers are likeliest
  });

  it("asks again with grey in place of pictures and of the frames of clips", async () => {
    const file = documents(
      "pictures",
      [
        chat([{ image: 0 }, question], "A lion."),
        chat([{ video: [1, 2], times: [0, 0.5] }, question], "It grows."),
        chat(question, "No picture."),
      ],
      3,
    );
    const found = await figures("answers", file, "--model", seeing, "--max-tokens", "4");
    expect(found).toMatchObject({ right: { of: 3 }, withoutPictures: { of: 2 } });
    expect(found["final"]).toMatchObject({ right: { of: 3 }, withoutPictures: { of: 2 } });
  });

  it("refuses what is no question by its line, and pictures without tiles", async () => {
    const refused = async (name: string, records: readonly object[], nTiles?: number) => {
      const file = documents(name, records, nTiles);
      const { status, stderr } = await llama4(["eval", "answers", file, "--model", seeing]);
      expect(status).toBe(2);
      return stderr;
    };
    expect(await refused("a", [chat("a", "b"), { text: "a" }])).toContain("line 2: no chat; expected");
    expect(await refused("b", [{ messages: [{ role: "user", content: "a" }] }])).toContain("no answer in words");
    expect(await refused("c", [{ ...chat("a", "b"), accepted: [3] }])).toContain('"accepted" is no list of texts');
    expect(await refused("d", [chat([{ image: 0 }], "b")])).toContain("without their file of tiles");
    expect(await refused("e", [chat([{ image: 0, rows: 2 }], "b")])).toContain("no picture of one tile");
    expect(await refused("f", [chat("a", "b"), chat("a", " ")])).toContain("line 2: the answer is empty");
    expect(await refused("g", [{ messages: chat("a", "b").messages.slice(1) }])).toContain(
      "no question before the answer",
    );
    const robot = { role: "robot", content: "a" };
    expect(await refused("h", [{ messages: [robot, ...chat("a", "b").messages] }])).toContain(
      'a role that is "robot", none',
    );
    for (const tile of [-1, 2])
      expect(await refused("i", [chat([{ image: tile }], "b")], 2)).toContain(`a picture that is tile ${tile}, of 2`);
  });
});

describe("eval needle", () => {
  const lines = Array.from({ length: 40 }, (_, i) => `Line ${i} says little.`).join("\n");

  it("asks for each length at all depths, the same again for the same seed", async () => {
    writeFileSync(place.at("haystack.txt"), lines);
    const args = ["needle", "--haystack", place.at("haystack.txt"), "--lengths", "150,300", "--count", "3"];
    const json = objectOf(await llama4(["eval", ...args, "--model", model, "--json"]));
    const lengths = json["lengths"] as { length: number; right: object; byDepth: { depth: number }[] }[];
    expect(lengths.map(({ length }) => length)).toEqual([150, 300]);
    for (const { byDepth, right } of lengths) {
      expect(byDepth.map(({ depth }) => depth)).toEqual([0, 0.5, 1]);
      expect(right).toMatchObject({ of: 3 });
    }
    expect(objectOf(await llama4(["eval", ...args, "--model", model, "--json"]))).toEqual(json);
  });

  it("refuses lengths beyond the model's context, and those that are none", async () => {
    writeFileSync(place.at("haystack.txt"), lines);
    const args = ["eval", "needle", "--haystack", place.at("haystack.txt"), "--model", model];
    const long = await llama4([...args, "--lengths", "200", "--context", "100"]);
    expect(long.status).toBe(2);
    expect(long.stderr).toContain("--lengths asks for 200 tokens and the model takes 100");
    expect((await llama4([...args, "--lengths", "many"])).status).toBe(2);
  });
});

describe("eval", () => {
  it("shows what there is, with examples", async () => {
    const { stdout } = await llama4(["eval", "--help"]);
    for (const name of ["perplexity", "answers", "needle"]) {
      expect(stdout).toContain(name);
      expect((await llama4(["eval", name, "--help"])).stdout).toContain(`$ llama4 eval ${name} `);
    }
  });

  it("without a file, or with one that is not there, says so", async () => {
    expect((await llama4(["eval", "answers"])).status).toBe(2);
    const { status, stderr } = await llama4(["eval", "perplexity", place.at("nowhere.jsonl"), "--model", model]);
    expect(status).not.toBe(0);
    expect(stderr).toContain("nowhere.jsonl");
  });
});
