// Builds the data of the tiny model: `node --import ../../scripts/ts.mjs build.ts [--tune] [--texts] [FOLDER]`, here
// or with a path. Everything is made again to the same bytes. --texts ends when the texts are made, which is all that
// bench/distil.ts and bench/muon.ts learn from. --tune leaves EmojiOne's drawings out, to compare recipes by; the run
// that ships learns from them too. Test files are written, and are for the end.

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { type FileHandle, open, rename } from "node:fs/promises";
import { join, resolve } from "node:path";
import { type ChatFormat, type Message, metaFormat, type PlainPart } from "../../src/prompt/chat-format.ts";
import { toHuggingFace } from "../../src/prompt/tokenizer-json.ts";
import { tilesHeader } from "../../src/train/documents.ts";
import { trainTokenizer } from "../../src/train/tokenizer.ts";
import { Draw, sideOf } from "./draw.ts";
import { fetchPackages, type Packages } from "./packages.ts";
import * as ask from "./picture-chats.ts";
import {
  type Concept,
  type Designer,
  readConcepts,
  readFlags,
  readPhotographs,
  side,
  testDesigners,
  trainDesigners,
  tuningDesigner,
} from "./pictures.ts";
import { readCountries, readProse } from "./prose.ts";
import { story } from "./stories.ts";
import { ask as askInWords, copy, type Knowledge, lookup, needle, needles, recall, type Turn } from "./text-chats.ts";
import { definition, readSenses, type Sense, senseText } from "./words.ts";

const args = process.argv.slice(2);
const isTuning = args.includes("--tune");
const work = resolve(args.find((arg) => !arg.startsWith("--")) ?? join(import.meta.dirname, "work"));
const out = join(work, "data");
mkdirSync(out, { recursive: true });

const messagesOf = ({ question, answer }: Turn) => [
  { role: "user" as const, content: question },
  { role: "assistant" as const, content: answer },
];

/** A file of documents and, where they have images, one of tiles: each beside its place until it is whole. */
class Writer {
  readonly #name: string;
  #lines: string[] = [];
  #documents: FileHandle | undefined;
  #tiles: FileHandle | undefined;
  #tileCount = 0;
  count = 0;

  constructor(name: string) {
    this.#name = name;
  }

  async write(document: object): Promise<void> {
    this.#documents ??= await open(this.#path("jsonl.part"), "w");
    this.#lines.push(JSON.stringify(document));
    this.count++;
    if (this.#lines.length === 4096) await this.#flush();
  }

  /** The number that a tile gets. */
  async tile(pixels: Uint8Array): Promise<number> {
    if (!this.#tiles) {
      this.#tiles = await open(this.#path("tiles.part"), "w");
      await this.#tiles.write(tilesHeader(side));
    }
    await this.#tiles.write(pixels);
    return this.#tileCount++;
  }

  async asked({ content, answer, accepted, further = [] }: ask.Asked): Promise<void> {
    const parts: unknown[] = [];
    for (const part of content) {
      if (typeof part === "string") parts.push(part);
      else if ("picture" in part) parts.push({ image: await this.tile(part.picture) });
      else {
        const video: number[] = [];
        for (const frame of part.frames) video.push(await this.tile(frame));
        parts.push({ video, times: part.times });
      }
    }
    await this.write({
      messages: [
        { role: "user", content: parts },
        { role: "assistant", content: answer },
        ...further.flatMap(messagesOf),
      ],
      ...(accepted && { accepted }),
    });
  }

  async close(): Promise<void> {
    await this.#flush();
    for (const [file, kind] of [
      [this.#tiles, "tiles"],
      [this.#documents, "jsonl"],
    ] as const) {
      await file?.close();
      if (file) await rename(this.#path(`${kind}.part`), this.#path(kind));
    }
    console.error(
      `${this.#name}: ${this.count.toLocaleString("en")} documents, ${this.#tileCount.toLocaleString("en")} tiles`,
    );
  }

  #path(kind: string): string {
    return join(out, `${this.#name}.${kind}`);
  }

  async #flush(): Promise<void> {
    if (this.#lines.length > 0) await this.#documents!.write(`${this.#lines.join("\n")}\n`);
    this.#lines = [];
  }
}

/** Texts on their sides of the split: name.jsonl, name.val.jsonl, name.test.jsonl. */
async function texts(name: string, all: Iterable<{ key: string; text: string }>): Promise<void> {
  const writers = { train: new Writer(name), val: new Writer(`${name}.val`), test: new Writer(`${name}.test`) };
  for (const { key, text } of all) await writers[sideOf(key)].write({ text });
  for (const writer of Object.values(writers)) await writer.close();
}

const packages = fetchPackages(join(work, "packages"));
const senses = readSenses(packages);
const countries = readCountries(packages);
const { concepts, others } = await readConcepts(packages);
const flags = await readFlags(packages);
console.error(
  `${senses.size.toLocaleString("en")} senses, ${countries.length} countries, ${concepts.length} things (${concepts.filter(({ heldOut }) => heldOut).length} held out), ${others.length} more of their kinds, ${flags.length} flags`,
);
writeFileSync(
  join(out, "things.json"),
  `${JSON.stringify(
    concepts.map(({ label, emoji, group, heldOut, sprites }) => ({
      label,
      emoji,
      group,
      heldOut,
      designers: [...sprites.keys()],
    })),
    null,
    1,
  )}\n`,
);

// ---- language ----

const commonWords = 3000;
/** The commonest words, each with its commonest sense, and the words of the pictures. */
const words = commonest(senses, concepts);
const common = new Set(words.map(({ sense }) => sense.id));
const document = (sense: Sense) => ({ key: sense.id, text: senseText(sense) });
await texts("common", [...senses.values()].filter(({ id }) => common.has(id)).map(document));
await texts(
  "wordnet",
  [...senses.values()].filter(({ id, gloss }) => !common.has(id) && gloss.length < 300).map(document),
);
await texts("prose", readProse(packages));
await texts(
  "factbook",
  countries.map(({ name, text }) => ({ key: `country ${name}`, text })),
);
await texts("stories", stories(40_000));
if (args.includes("--texts")) process.exit();

function commonest(all: ReadonlyMap<string, Sense>, things: readonly Concept[]): { word: string; sense: Sense }[] {
  const best = new Map<string, Sense>();
  for (const sense of all.values()) {
    const word = sense.words[0]!;
    const before = best.get(word);
    if (!before || sense.count > before.count) best.set(word, sense);
  }
  const sorted = [...best].sort(([a, x], [b, y]) => y.count - x.count || (a < b ? -1 : 1)).slice(0, commonWords);
  const named = things.flatMap(({ label }): [string, Sense][] => (best.has(label) ? [[label, best.get(label)!]] : []));
  return [...new Map([...sorted, ...named])]
    .map(([word, sense]) => ({ word, sense }))
    .filter(({ sense }) => sense.gloss.length < 160);
}

function* stories(count: number) {
  const d = new Draw("stories");
  const of = (...groups: string[]) => concepts.filter(({ group }) => groups.includes(group)).map(({ label }) => label);
  const cast = {
    animals: of("animal"),
    foods: of("food"),
    things: of("object", "instrument", "clothing"),
    vehicles: of("vehicle"),
  };
  for (let i = 0; i < count; i++) yield { key: `story ${i}`, text: story(d, cast) };
}

// ---- chats in words ----

const continents = flags.map(({ name, capital, continent }) => ({ name, capital, continent }));
const knowledge = (heldOut: boolean): Knowledge => ({ words, senses, countries, continents, heldOut });
const chat = (...turns: readonly Turn[]) => ({ messages: turns.flatMap(messagesOf) });

for (const [name, heldOut, count] of [
  ["chat", false, 120_000],
  ["chat.val", true, 1500],
] as const) {
  const [d, writer] = [new Draw(name), new Writer(name)];
  for (let i = 0; i < count; i++) await writer.write(chat(askInWords(d, knowledge(heldOut))));
  await writer.close();
}
const short = words.filter(({ sense }) => sense.gloss.length < 90);
// Lines of about 25 tokens: up to 14 of them stay below 512 tokens.
for (const [name, count, anyLength] of [
  ["needle", 40_000, true],
  ["needle.val", 400, false],
] as const) {
  const [d, writer] = [new Draw(name), new Writer(name)];
  for (let i = 0; i < count; i++)
    await writer.write(
      chat(needle(d, { words: short, anyLength }, 1 + Math.floor((13 * Math.min(i, count / 2)) / (count / 2)))),
    );
  await writer.close();
}

// Finding is learnt on the shortest texts first, where what is to be found is one of few; then on long ones.
const anyLength = true;
const frequent = { words: words.slice(0, 1200).filter(({ word }) => /^[a-z]{2,8}$/.test(word)) };
for (const [name, count, turn] of [
  ["copy.short", 40_000, (d: Draw) => copy(d, { ...frequent, anyLength }, 8)],
  ["copy.long", 40_000, (d: Draw) => copy(d, { ...frequent, anyLength }, 32)],
  ["copy.val", 200, (d: Draw) => copy(d, frequent, 32)],
  ["lookup.short", 40_000, (d: Draw) => lookup(d, { ...frequent, anyLength }, 4)],
  ["lookup.long", 40_000, (d: Draw) => lookup(d, { words: short, anyLength }, 26)],
  ["lookup.val", 200, (d: Draw) => lookup(d, { words: short }, 26)],
] as const) {
  const [d, writer] = [new Draw(name), new Writer(name)];
  for (let i = 0; i < count; i++) await writer.write(chat(turn(d)));
  await writer.close();
}

{
  const [d, writer] = [new Draw("recall"), new Writer("recall")];
  for (let i = 0; i < 40_000; i++) await writer.write({ text: recall(d, { words: short, anyLength }, d.whole(2, 24)) });
  await writer.close();
}

// ---- the vocabulary ----

const vocabulary = 4096;
const learntFrom = ["common", "wordnet", "prose", "factbook", "stories", "chat"];
const tokenizer = await trainTokenizer(linesOf(learntFrom), { vocabSize: vocabulary });
writeFileSync(join(out, "tokenizer.json"), `${JSON.stringify(toHuggingFace(tokenizer), null, 1)}\n`);
const sample = [...linesOf(["prose.val"])].join("\n");
console.error(
  `tokenizer: ${tokenizer.vocabSize} tokens, ${(Buffer.byteLength(sample) / tokenizer.encode(sample).length).toFixed(2)} bytes a token of held-out prose`,
);

function* linesOf(names: readonly string[]): Generator<string> {
  for (const name of names)
    for (const line of readFileSync(join(out, `${name}.jsonl`), "utf8").split("\n"))
      if (line) yield* stringsOf(JSON.parse(line));
}

function* stringsOf(value: unknown): Generator<string> {
  if (typeof value === "string") yield value;
  else if (typeof value === "object" && value !== null)
    for (const [key, inner] of Object.entries(value)) if (key !== "role") yield* stringsOf(inner);
}

// ---- texts with the edge of a chunk between question and answer, or within them ----
//
// Behind it the chunked layers see nothing of what was said. Most lines tell of rare words, as evaluation has them, and the texts
// stay below 1,024 tokens.

/** Tokens of a chunk of the model that is to learn from this. */
const { chunk } = JSON.parse(readFileSync(join(import.meta.dirname, "text.json"), "utf8")).model;

{
  const rare = [...senses.values()]
    .filter(({ id, gloss }) => sideOf(id) === "train" && gloss.length < 90)
    .map((sense) => ({ word: sense.words[0]!, sense }));
  const length = (d: Draw) => (d.chance(0.7) ? d.whole(900, 1400) : d.whole(1900, 2700)); // about the first edge, the second
  const long = (d: Draw) => chat(...needles(d, { words: d.chance(0.7) ? rare : short, anyLength }, length(d)));
  const [d, writer] = [new Draw("needle.edge"), new Writer("needle.edge")];
  const { encode } = metaFormat(tokenizer);
  while (writer.count < 5000) {
    const document = long(d);
    if (hasEdge(document.messages, encode)) await writer.write(document);
  }
  await writer.close();
}

function hasEdge(messages: readonly Message<PlainPart>[], encode: ChatFormat["encode"]): boolean {
  const question = 16; // tokens
  return messages.some(({ role }, i) => {
    if (role !== "assistant") return false;
    const begins = encode(messages.slice(0, i)).ids.length - question;
    const ends = encode(messages.slice(0, i + 1), { addGenerationPrompt: false }).ids.length - 2; // the last row that says something
    return Math.floor(begins / chunk) !== Math.floor(ends / chunk);
  });
}

// What needles are hidden in at the end: lines of the same kind that were never learnt.
const unseen = [...senses.values()].filter(
  ({ id, gloss }) => sideOf(id) === "test" && !common.has(id) && gloss.length < 90,
);
writeFileSync(join(out, "haystack.txt"), unseen.map((sense) => `${definition(sense, sense.words[0]!)}\n`).join(""));

// ---- pictures ----

const languages = readLanguages(packages);
const learnt = concepts.filter(({ heldOut }) => !heldOut);
const world = (designers: readonly Designer[], things = learnt, sprite: "wide" | "test" = "wide"): ask.World => ({
  ...{
    concepts: things.filter(({ sprites }) => designers.some((designer) => sprites.has(designer))),
    designers,
    languages,
  },
  flags: flags.flatMap((flag) => (flag[sprite] ? [{ ...flag, sprite: flag[sprite] }] : [])),
});
const seen = world(isTuning ? trainDesigners.filter((designer) => designer !== tuningDesigner) : trainDesigners);

{
  const [d, writer] = [new Draw("labels"), new Writer("labels")];
  for (let i = 0; i < 40_000; i++) {
    const { picture, label } = ask.labelled(d, seen);
    await writer.write({ parts: [{ image: await writer.tile(picture) }, label] });
  }
  await writer.close();
}

const tasks = {
  ...{
    name: ask.nameIt,
    group: ask.groupOf,
    ground: ask.groundColour,
    shape: ask.shapeColour,
    count: ask.count,
    place: ask.place,
  },
  ...{ same: ask.same, which: ask.which, clip: ask.clip, translate: ask.translate, flag: ask.flag },
  ...{ side: ask.sideOfIt, is: ask.isIt },
};
const shares: Readonly<Record<keyof typeof tasks, number>> = {
  name: 27,
  group: 5,
  ground: 8,
  shape: 5,
  count: 6,
  place: 15,
  same: 8,
  which: 10,
  clip: 7,
  translate: 2,
  flag: 9,
  // In `verdicts`, and in `talks`, where questions follow each other.
  side: 0,
  is: 0,
};

{
  const [d, writer] = [new Draw("pictures"), new Writer("pictures")];
  // So that a run can weigh them: what is forgotten first, and what is learnt last.
  const again = { flags: new Writer("flags"), colours: new Writer("colours") };
  const total = Object.values(shares).reduce((sum, share) => sum + share, 0);
  for (let i = 0; i < 130_000; i++) {
    let left = d.number() * total;
    const name = (Object.keys(tasks) as (keyof typeof tasks)[]).find((key) => {
      left -= shares[key];
      return left < 0;
    })!;
    const made = tasks[name](d, seen);
    await writer.asked(made);
    if (name === "flag") await again.flags.asked(made);
    if (name === "ground" || name === "shape") await again.colours.asked(made);
  }
  await writer.close();
  for (const some of Object.values(again)) await some.close();
}

{
  const [d, writer] = [new Draw("small"), new Writer("small")];
  for (let i = 0; i < 30_000; i++) await writer.asked(ask.nameSmall(d, seen));
  await writer.close();
}

// What kind of thing it is, of many more things than are named: what a kind is shall not be the list of those names.
{
  const [d, writer] = [new Draw("kinds"), new Writer("kinds")];
  const many = world(seen.designers, [...learnt, ...others]);
  for (let i = 0; i < 40_000; i++) await writer.asked(ask.groupOf(d, many));
  await writer.close();
}

// Questions that are answered in two steps, as first ones: what is seen, then what follows from it.
{
  const [d, writer] = [new Draw("verdicts"), new Writer("verdicts")];
  const kinds = [ask.same, ask.same, ask.isIt, ask.isIt, ask.sideOfIt, ask.sideOfIt, ask.sideOfIt];
  for (let i = 0; i < 40_000; i++) await writer.asked(d.of(kinds)(d, seen));
  await writer.close();
}

// Talks: one to four questions about the same pictures. A seventh go on with a question or two in words, and a tenth are of words
// alone.
{
  const [d, writer] = [new Draw("talks"), new Writer("talks")];
  const often = (n: number, talk: typeof ask.talkOfOne) => Array.from({ length: n }, () => talk);
  const pictured = [...often(7, ask.talkOfOne), ...often(8, ask.talkOfPlaces), ...often(7, ask.talkOfPictures)];
  const talks = [...pictured, ...often(3, ask.talkOfMany)];
  const inWords = (least: number, most: number) =>
    Array.from({ length: d.whole(least, most) }, () => askInWords(d, knowledge(false)));
  for (let i = 0; i < 90_000; i++) {
    if (d.chance(0.1)) await writer.write(chat(...inWords(2, 4)));
    else {
      const { further = [], ...first } = d.of(talks)(d, seen);
      await writer.asked({ ...first, further: [...further, ...(d.chance(0.15) ? inWords(1, 2) : [])] });
    }
  }
  await writer.close();
}

// A file for each task: scenes that were never seen, of designers that were; then what is for the end.
for (const [name, task] of Object.entries({ ...tasks, again: ask.isItThen }))
  await asked(`pictures.${name}.val`, task, seen, 400);
if (isTuning) await asked("pictures.name.tune", ask.nameIt, world([tuningDesigner]), 600);
for (const [letter, designer] of [
  ["a", testDesigners[0]!],
  ["b", testDesigners[1]!],
] as const)
  for (const name of ["name", "group"] as const)
    await asked(`pictures.${name}.test-${letter}`, tasks[name], world([designer]), 1000);
const photographs = await readPhotographs(packages, learnt);
console.error(`${photographs.length} photographs`);
for (const name of ["name", "group"] as const)
  await asked(`pictures.${name}.test-c`, tasks[name], world(["tuxpaint"], photographs), 600);
await asked(
  "pictures.group.unknown",
  ask.groupOf,
  world(
    trainDesigners,
    concepts.filter(({ heldOut }) => heldOut),
  ),
  600,
);
await asked("pictures.flag.test", ask.flag, world(trainDesigners, learnt, "test"), 600);

async function asked(
  name: string,
  task: (d: Draw, w: ask.World) => ask.Asked,
  w: ask.World,
  count: number,
): Promise<void> {
  const [d, writer] = [new Draw(name), new Writer(name)];
  for (let i = 0; i < count; i++) await writer.asked(task(d, w));
  await writer.close();
}

function readLanguages(packages: Packages): Map<string, Map<string, string>> {
  const found = new Map<string, Map<string, string>>();
  for (const code of ["ar", "de", "fr", "hi", "id", "it", "pt", "es", "fil", "th", "vi"]) {
    const file = join(packages.npm("cldr-annotations-full"), "annotations", code, "annotations.json");
    const { annotations } = JSON.parse(readFileSync(file, "utf8")).annotations as {
      annotations: Record<string, { tts?: string[] }>;
    };
    found.set(
      code,
      new Map(Object.entries(annotations).flatMap(([emoji, { tts }]) => (tts?.[0] ? [[emoji, tts[0]]] : []))),
    );
  }
  return found;
}

// ---- a few to look at while training ----

{
  const [d, writer] = [new Draw("samples"), new Writer("samples")];
  for (const task of [ask.nameIt, ask.nameIt, ask.count, ask.place, ask.same, ask.clip, ask.flag])
    await writer.asked(task(d, seen));
  for (const text of ["The little dog", "Once upon a time there was a"]) await writer.write({ text });
  for (const turn of [
    { question: 'What does "lion" mean?', answer: "" },
    { question: "What is 3 + 4?", answer: "7" },
    { question: "Who are you?", answer: "" },
  ])
    await writer.write(chat({ ...turn, answer: turn.answer || "…" }));
  await writer.close();
}
