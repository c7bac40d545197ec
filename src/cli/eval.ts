// `llama4 eval`: what a model is worth, in figures.

import { setMaxListeners } from "node:events";
import type { Command } from "commander";
import type { FileSource } from "../checkpoint/source.ts";
import { uniform } from "../engine/random.ts";
import { commonestShare, finalAnswer, isRight, type Share, shareOf } from "../eval/answers.ts";
import { Likelihood, logProbability, windows } from "../eval/likelihood.ts";
import { hide, type Line, says } from "../eval/needle.ts";
import type { Llama4, Message } from "../index.ts";
import { RequestError } from "../tensor/errors.ts";
import type { Documents } from "../train/documents.ts";
import { type Answer, progress, type Run, type Session, table } from "./answer.ts";
import { openDocuments } from "./documents.ts";
import { openModel } from "./model.ts";
import { define, type ModelOptions, whole, withModel } from "./options.ts";
import { type Question, questionOf } from "./questions.ts";

interface LimitOptions extends ModelOptions {
  readonly limit?: number;
}

interface PerplexityOptions extends LimitOptions {
  readonly window: number;
}

interface AnswersOptions extends LimitOptions {
  readonly top: number;
  readonly maxTokens: number;
}

interface NeedleOptions extends ModelOptions {
  readonly haystack: string;
  readonly lengths: readonly number[];
  readonly count: number;
  readonly seed: number;
}

export function evalCommand(program: Command, run: Run): void {
  const group = program
    .command("eval")
    .description("What a model is worth: how well it foretells texts, answers questions, and finds things again.");
  const files = (command: Command) =>
    withModel(command).option("--limit <n>", "of each file, the first n documents", whole(1));
  files(
    define(group, "perplexity <files...>", "Nats a token and bits a byte of texts that it has not learnt.", [
      "llama4 eval perplexity --model scout.gguf book.txt",
      "llama4 eval perplexity work/data/prose.test.jsonl work/data/stories.test.jsonl --window 512 --json",
    ]),
  )
    .option("--window <n>", "tokens computed together; each begins anew", whole(2), 512)
    .action(run((session, paths: string[], options: PerplexityOptions) => perplexity(session, paths, options)));
  files(
    define(
      group,
      "answers <files...>",
      "How many questions, with their pictures, are answered right; and how many by the words alone, with grey in place of each picture.",
      [
        "llama4 eval answers work/data/pictures.count.val.jsonl",
        "llama4 eval answers --top 5 work/data/pictures.name.test-a.jsonl --limit 200",
      ],
    ),
  )
    .option("--top <k>", "also how often a right answer is among the k likeliest of the file's answers", whole(1), 1)
    .option("--max-tokens <n>", "longest answer", whole(1), 64)
    .addHelpText(
      "after",
      "\nA file has a chat on each line, whose last message is the answer; others that are right may stand beside it in " +
        '"accepted".\nThe likeliest tokens are said. Case, punctuation and articles do not count. "final" compares only what stands behind ' +
        "the last\ncolon and space: an answer may say first what it rests on.",
    )
    .action(run((session, paths: string[], options: AnswersOptions) => answers(session, paths, options)));
  withModel(
    define(group, "needle", "How often a number is found again that stands somewhere in a long text.", [
      "llama4 eval needle --haystack book.txt --lengths 1000,10000,100000",
      "llama4 eval needle --model scout.gguf --haystack work/data/haystack.txt --count 50 --json",
    ]),
  )
    .requiredOption("--haystack <file>", "a text whose lines the number is hidden among")
    .option("--lengths <list>", "tokens of the prompt, with commas between", lengthsOf, [512, 1024, 2048, 4096])
    .option("--count <n>", "prompts of each length, the number at as many depths", whole(1), 20)
    .option("--seed <n>", "draws the lines and the numbers", whole(0), 0)
    .action(run((session, options: NeedleOptions) => needle(session, options)));
}

function lengthsOf(text: string): number[] {
  return text.split(",").map(whole(32));
}

const together = 32; // requests at once: their steps are shared

// ---- perplexity ----

async function perplexity(session: Session, paths: readonly string[], options: PerplexityOptions): Promise<Answer> {
  const { signal } = session;
  return withFiles(paths, async (files) => {
    await using model = await openModel(options, session);
    const length = Math.min(options.window, model.info.context);
    const bar = progress("reading", "documents");
    const total = sum(files.map(([, documents]) => limited(documents, options)));
    let done = 0;
    const found: Record<string, Likelihood["summary"]> = {};
    try {
      for (const [path, documents] of files) {
        const likelihood = new Likelihood();
        await each(limited(documents, options), signal, async (i) => {
          const text = textOf(await documents.record(i), documents, i);
          const ids = await model.encode(text, { bos: true, signal });
          let nats = 0;
          for (const { from, to } of windows(ids.length, length))
            nats -= sum(await logProbabilities(model, ids.subarray(from, to), signal));
          likelihood.add(nats, ids.length - 1, Buffer.byteLength(text));
          bar.update(++done, total);
        });
        found[path] = likelihood.summary;
      }
    } finally {
      bar.stop();
    }
    const rows = Object.entries(found).map(([path, { loss, perplexity, bitsPerByte, tokens }]) => [
      ...[path, loss.toFixed(3), perplexity.toFixed(2), bitsPerByte.toFixed(3), tokens],
    ]);
    return answerOf(
      { what: "perplexity", model: model.info.path, window: length, files: found },
      [["", "nats/token", "perplexity", "bits/byte", "tokens"], ...rows],
      await loadsOf(model),
    );
  });
}

/** Of all tokens but the first. */
async function logProbabilities(model: Llama4, ids: Int32Array, signal: AbortSignal): Promise<number[]> {
  const { vocabSize } = model.info;
  const found: number[] = [];
  for await (const { position, logits } of model.logits(ids, { signal }))
    for (let row = 0; row < logits.length / vocabSize; row++) {
      const next = ids[position + row + 1];
      if (next !== undefined) found.push(logProbability(logits.subarray(row * vocabSize, (row + 1) * vocabSize), next));
    }
  return found;
}

function textOf(record: unknown, { name }: Documents, i: number): string {
  const text = (record as { text?: unknown } | null)?.text;
  if (typeof text === "string") return text;
  throw new RequestError(
    `${name}: line ${i + 1} is no text; expected {"text": "…"} (chats are measured by llama4 eval answers)`,
  );
}

// ---- answers ----

interface Verdict {
  readonly accepted: readonly string[];
  readonly isRight: boolean;
  /** Whether its final answer is, whatever it says before it. */
  readonly endsRight: boolean;
  /** With grey in place of pictures; undefined where there are none. */
  readonly isRightBlind?: boolean;
  readonly endsRightBlind?: boolean;
  readonly isAmongTop?: boolean;
}

async function answers(session: Session, paths: readonly string[], options: AnswersOptions): Promise<Answer> {
  return withFiles(paths, async (files) => {
    await using model = await openModel(options, session);
    const bar = progress("asking", "questions");
    const total = sum(files.map(([, documents]) => limited(documents, options)));
    let done = 0;
    const found: Record<string, ReturnType<typeof summaryOf>> = {};
    try {
      for (const [path, documents] of files) {
        const n = limited(documents, options);
        const likelihood = new Likelihood();
        const candidates = options.top > 1 ? await candidatesOf(documents, { model, signal: session.signal }) : [];
        const verdicts = await each(n, session.signal, async (i) => {
          const verdict = await judged(documents, i, {
            ...{ model, candidates, likelihood, options },
            signal: session.signal,
          });
          bar.update(++done, total);
          return verdict;
        });
        found[path] = summaryOf(verdicts, likelihood);
      }
    } finally {
      bar.stop();
    }
    const rows = Object.entries(found).map(([path, { right, final, withoutPictures, top, commonest, bitsPerByte }]) => [
      ...[path, percent(right), `${percentOf(right.low)} to ${percentOf(right.high)}`],
      ...[withoutPictures ? percent(withoutPictures) : "", percentOf(commonest), percent(final.right)],
      ...(options.top > 1 ? [top ? percent(top) : ""] : []),
      ...[bitsPerByte.toFixed(3), right.of],
    ]);
    const top = options.top > 1 ? [`of ${options.top}`] : [];
    return answerOf(
      { what: "answers", model: model.info.path, top: options.top, files: found },
      [["", "right", "95 %", "grey", "commonest", "final", ...top, "bits/byte", "asked"], ...rows],
      await loadsOf(model),
    );
  });
}

interface Judge {
  readonly model: Llama4;
  readonly candidates: readonly Candidate[];
  readonly likelihood: Likelihood;
  readonly options: AnswersOptions;
  readonly signal: AbortSignal;
}

async function judged(documents: Documents, i: number, judge: Judge): Promise<Verdict> {
  const { model, candidates, likelihood, options, signal } = judge;
  const say = async ({ messages }: Question) => {
    let said = "";
    for await (const { text } of model.chat(messages, { temperature: 0, maxTokens: options.maxTokens, signal }))
      said += text;
    return said;
  };
  const question = await questionOf(documents, i, "shown");
  const { accepted, answer, nPictures } = question;
  const said = await say(question);
  const endsRight = (text: string) => isRight(finalAnswer(text), accepted.map(finalAnswer));
  const verdict = { accepted, isRight: isRight(said, accepted), endsRight: endsRight(said) };
  const asked = { messages: question.messages };
  const tokens = await tokensOfAnswer(answer, judge);
  const [own] = await model.likeliest(asked, [tokens], { signal });
  likelihood.add(-own!.logprob, tokens.length, Buffer.byteLength(answer));
  const saidBlind = nPictures > 0 ? await say(await questionOf(documents, i, "grey")) : undefined;
  const blind = saidBlind !== undefined && {
    isRightBlind: isRight(saidBlind, accepted),
    endsRightBlind: endsRight(saidBlind),
  };
  if (candidates.length === 0) return { ...verdict, ...blind };
  const tokensOf = candidates.map(({ tokens }) => tokens);
  const best = await model.likeliest(asked, tokensOf, { k: options.top, signal });
  const texts = best.map(({ candidate }) => candidates[candidate]!.text);
  return { ...verdict, ...blind, isAmongTop: texts.some((text) => isRight(text, accepted)) };
}

interface Candidate {
  readonly text: string;
  /** The one that ends it included. */
  readonly tokens: Int32Array;
}

/** The answers of a file, each once, in the form that is accepted first. */
async function candidatesOf(
  documents: Documents,
  asking: { readonly model: Llama4; readonly signal: AbortSignal },
): Promise<Candidate[]> {
  const texts = new Set<string>();
  for (let i = 0; i < documents.length; i++) {
    const record = (await documents.record(i)) as { accepted?: readonly string[] };
    texts.add(record.accepted?.[0] ?? (await questionOf(documents, i, "grey")).answer);
  }
  const found: Candidate[] = [];
  for (const text of texts) found.push({ text, tokens: await tokensOfAnswer(text, asking) });
  return found;
}

/** An answer as it stands behind a question in the chat format, the token that ends it included. */
async function tokensOfAnswer(answer: string, { model, signal }: Pick<Judge, "model" | "signal">): Promise<Int32Array> {
  const question: Message = { role: "user", content: "?" };
  const [prompt, whole, own] = await Promise.all([
    model.encodeChat([question], { signal }),
    model.encodeChat([question, { role: "assistant", content: answer }], { signal }),
    model.encode(answer, { signal }),
  ]);
  const tokens = whole.subarray(prompt.length, prompt.length + own.length + 1);
  if (tokens.length <= own.length || own.some((id, i) => tokens[i] !== id))
    throw new RequestError(
      "this checkpoint's chat format does not put an answer behind its prompt as it stands; its answers cannot be measured",
    );
  return tokens;
}

function summaryOf(verdicts: readonly Verdict[], likelihood: Likelihood) {
  const of = (key: "isRightBlind" | "endsRightBlind" | "isAmongTop"): Share | undefined => {
    const known = verdicts.flatMap(({ [key]: verdict }) => (verdict === undefined ? [] : [verdict]));
    return known.length > 0 ? shareOf(known) : undefined;
  };
  return {
    right: shareOf(verdicts.map(({ isRight }) => isRight)),
    final: {
      right: shareOf(verdicts.map(({ endsRight }) => endsRight)),
      withoutPictures: of("endsRightBlind"),
      commonest: commonestShare(verdicts.map(({ accepted }) => accepted.map(finalAnswer))),
    },
    withoutPictures: of("isRightBlind"),
    top: of("isAmongTop"),
    commonest: commonestShare(verdicts.map(({ accepted }) => accepted)),
    bitsPerByte: likelihood.summary.bitsPerByte,
  };
}

// ---- needle ----

async function needle(session: Session, options: NeedleOptions): Promise<Answer> {
  const { signal } = session;
  const { haystack, lengths, count, seed } = options;
  return withFiles([haystack], async ([file]) => {
    const documents = file![1];
    await using model = await openModel(options, session);
    const longest = Math.max(...lengths);
    if (longest + answerTokens > model.info.context)
      throw new RequestError(
        `--lengths asks for ${longest} tokens and the model takes ${model.info.context}; expected shorter ones, or a larger --context`,
      );
    const lines: Line[] = [];
    for (let i = 0; i < documents.length && sum(lines.map(({ tokens }) => tokens)) < 2 * longest; i++)
      for (const text of textOf(await documents.record(i), documents, i).split("\n"))
        if (text.trim() !== "") lines.push({ text, tokens: (await model.encode(`${text}\n`)).length });
    const bar = progress("looking for needles", "prompts");
    const found: { length: number; right: Share; byDepth: { depth: number; isRight: boolean }[] }[] = [];
    let done = 0;
    try {
      for (const [l, length] of lengths.entries()) {
        const byDepth = await each(count, signal, async (i) => {
          let draws = 0;
          const random = () => uniform(seed, (l * count + i) * 1000 + draws++);
          const depth = count === 1 ? 0.5 : i / (count - 1);
          const around = (await model.encodeChat([{ role: "user", content: hide(lines, 0, 0, () => 0).prompt }]))
            .length;
          const { prompt, answer } = hide(lines, length - around, depth, random);
          let said = "";
          const asked = model.chat([{ role: "user", content: prompt }], {
            temperature: 0,
            maxTokens: answerTokens,
            signal,
          });
          for await (const { text } of asked) said += text;
          bar.update(++done, lengths.length * count);
          return { depth, isRight: says(said, answer) };
        });
        found.push({ length, right: shareOf(byDepth.map(({ isRight }) => isRight)), byDepth });
      }
    } finally {
      bar.stop();
    }
    const rows = found.map(({ length, right, byDepth }) => [
      ...[length.toLocaleString("en"), percent(right), `${percentOf(right.low)} to ${percentOf(right.high)}`],
      byDepth.map(({ isRight }) => (isRight ? "▮" : "▯")).join(""),
    ]);
    return answerOf(
      { what: "needle", model: model.info.path, haystack, count, seed, lengths: found },
      [["tokens", "found", "95 %", "from the beginning to the end"], ...rows],
      await loadsOf(model),
    );
  });
}

const answerTokens = 16;

// ---- all ----

/** What the experts of a layer had to do: shares of the busiest and of the idlest. */
interface LayerLoad {
  readonly layer: number;
  readonly busiest: number;
  readonly least: number;
}

async function loadsOf(model: Llama4): Promise<LayerLoad[]> {
  const { experts } = await model.stats();
  return experts.map(({ layer, tokens }) => {
    const all = sum(tokens);
    return { layer, busiest: Math.max(...tokens) / all, least: Math.min(...tokens) / all };
  });
}

function answerOf(
  json: object,
  rows: readonly (readonly (string | number)[])[],
  experts: readonly LayerLoad[],
): Answer {
  const loads = experts.map(
    ({ layer, busiest, least }) => `layer ${layer} ${percentOf(least)} to ${percentOf(busiest)}`,
  );
  const load = loads.length > 0 ? [`  experts had ${loads.join(", ")}`] : [];
  return { json: { ...json, experts }, text: [table(rows), ...load].join("\n") };
}

async function withFiles<T>(
  paths: readonly string[],
  body: (files: readonly (readonly [string, Documents])[]) => Promise<T>,
): Promise<T> {
  const opened: FileSource[] = [];
  try {
    const files: [string, Documents][] = [];
    for (const path of paths) files.push([path, await openDocuments(path, opened)]);
    return await body(files);
  } finally {
    for (const file of opened) await file.close();
  }
}

/** Work for 0 … n − 1, some at a time; what it gave, in order. The signal may have a listener for each. */
async function each<T>(n: number, signal: AbortSignal, work: (i: number) => Promise<T>): Promise<T[]> {
  setMaxListeners(8 * together, signal);
  const results = new Array<T>(n);
  let next = 0;
  const worker = async () => {
    while (next < n) {
      const i = next++;
      results[i] = await work(i);
    }
  };
  await Promise.all(Array.from({ length: Math.min(together, n) }, worker));
  return results;
}

const limited = (documents: Documents, { limit = Infinity }: LimitOptions) => Math.min(limit, documents.length);
const sum = (numbers: readonly number[]) => numbers.reduce((a, b) => a + b, 0);
const percentOf = (share: number) => `${(100 * share).toFixed(1)} %`;
const percent = ({ share }: Share) => percentOf(share);
