// Hugging Face's tokenizer.json: a byte-level BPE in GPT-2's alphabet.
import { CheckpointError } from "../tensor/errors.ts";
import { toAlphabet, writeAlphabet } from "./byte-alphabet.ts";
import { VocabularyWriter } from "./byte-pairs.ts";
import { namedMerges } from "./merges.ts";
import { GPT2_PATTERN } from "./pre-tokenizer.ts";
import { shown } from "./shown.ts";
import { Tokenizer, type TokenizerOptions } from "./tokenizer.ts";

type Json = Readonly<Record<string, unknown>>;

/** Opens a parsed tokenizer.json. */
export function fromHuggingFace(file: unknown, options: TokenizerOptions = {}): Tokenizer {
  const root = object(file, "the file");
  const model = object(root["model"], "model");
  if (model["type"] !== undefined && model["type"] !== "BPE") throw unusable("model.type", model["type"], "BPE");
  for (const key of ["unk_token", "continuing_subword_prefix", "end_of_word_suffix"])
    if (model[key]) throw unusable(`model.${key}`, model[key], "none, as byte-level BPE has it");
  if (model["byte_fallback"]) throw unusable("model.byte_fallback", true, "a byte-level vocabulary");
  if (model["dropout"]) throw unusable("model.dropout", model["dropout"], "none");
  if (!isIdentity(root["normalizer"])) throw unusable("normalizer", root["normalizer"], "none");

  const special = readAddedTokens(root["added_tokens"]);
  const writer = new VocabularyWriter();
  writeTokens(object(model["vocab"], "model.vocab"), special, writer);
  return new Tokenizer(
    {
      vocabulary: writer.finish(),
      special,
      merges: namedMerges(array(model["merges"], "model.merges")),
      wholePieces: model["ignore_merges"] === true,
      pattern: readPattern(root["pre_tokenizer"]),
    },
    options,
  );
}

/** A tokenizer.json with the same ids, for Hugging Face's libraries to read. */
export function toHuggingFace(tokenizer: Tokenizer) {
  const { wholePieces, pattern } = tokenizer.parts;
  const names = ordinaryNames(tokenizer);
  const merges = tokenizer.mergeList();
  const pairs: [string, string][] = [];
  for (let i = 0; i < merges.length; i += 3) pairs.push([names[merges[i]!]!, names[merges[i + 1]!]!]);
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false };
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: [...tokenizer.special]
      .sort(([, a], [, b]) => a - b)
      .map(([content, id]) => ({
        id,
        content,
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: false,
        special: true,
      })),
    normalizer: null,
    pre_tokenizer: {
      type: "Sequence",
      pretokenizers: [{ type: "Split", pattern: { Regex: pattern }, behavior: "Isolated", invert: false }, byteLevel],
    },
    post_processor: postProcessor(tokenizer),
    decoder: { ...byteLevel, add_prefix_space: true, use_regex: true },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: wholePieces,
      vocab: Object.fromEntries(names.flatMap((name, id) => (name === undefined ? [] : [[name, id] as const]))),
      merges: pairs,
    },
  };
}

// As in Llama 4's own file: Hugging Face's libraries put the begin token before text unless told not to.
function postProcessor(tokenizer: Tokenizer) {
  if (tokenizer.bos === undefined) return null;
  const bos = tokenizer.decode([tokenizer.bos]);
  const begin = { SpecialToken: { id: bos, type_id: 0 } };
  const sequence = (id: string, type_id: number) => ({ Sequence: { id, type_id } });
  return {
    type: "TemplateProcessing",
    single: [begin, sequence("A", 0)],
    pair: [begin, sequence("A", 0), { SpecialToken: { id: bos, type_id: 1 } }, sequence("B", 1)],
    special_tokens: { [bos]: { id: bos, ids: [tokenizer.bos], tokens: [bos] } },
  };
}

/** The tokenizer_config.json beside it. */
export function toHuggingFaceConfig(tokenizer: Tokenizer, { chatTemplate }: { chatTemplate?: string } = {}) {
  const text = (id: number | undefined) => (id === undefined ? null : tokenizer.decode([id]));
  return {
    tokenizer_class: "PreTrainedTokenizerFast",
    bos_token: text(tokenizer.bos),
    eos_token: text(endOf(tokenizer, chatTemplate)),
    pad_token: tokenizer.special.has("<|finetune_right_pad|>") ? "<|finetune_right_pad|>" : null,
    clean_up_tokenization_spaces: false,
    model_input_names: ["input_ids", "attention_mask"],
    ...(chatTemplate === undefined ? {} : { chat_template: chatTemplate }),
  };
}

/** What ends a reply: `<|eot|>`, or the end of a text where the template knows no turns, as that of a model of texts alone. */
export function endOf({ special, eos }: Tokenizer, chatTemplate: string | undefined): number | undefined {
  const turn = special.get("<|eot|>");
  return chatTemplate === undefined || chatTemplate.includes("<|eot|>") ? (turn ?? eos) : (eos ?? turn);
}

/** Each ordinary token in the alphabet; undefined for special tokens and holes. */
export function ordinaryNames(tokenizer: Tokenizer): (string | undefined)[] {
  const { reserved } = tokenizer.parts.vocabulary;
  return Array.from({ length: tokenizer.vocabSize }, (_, id) =>
    reserved.has(id) ? undefined : toAlphabet(tokenizer.tokenBytes(id)),
  );
}

const unusable = (key: string, found: unknown, expected: string) =>
  new CheckpointError(`tokenizer.json: ${key} is ${shown(found)}; expected ${expected}`);

function object(value: unknown, key: string): Json {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw unusable(key, value, "an object");
  return value as Json; // an object of JSON has string keys
}

function array(value: unknown, key: string): readonly unknown[] {
  if (!Array.isArray(value)) throw unusable(key, value, "an array");
  return value;
}

function isIdentity(step: unknown): boolean {
  if (step === null || step === undefined) return true;
  const { type, normalizers } = object(step, "normalizer");
  return type === "Sequence" && Array.isArray(normalizers) && normalizers.length === 0;
}

// Added tokens that are not marked special are treated as if they were: no text of a user's may yield one.
function readAddedTokens(value: unknown): Map<string, number> {
  const special = new Map<string, number>();
  for (const [i, entry] of array(value ?? [], "added_tokens").entries()) {
    const { content, id, single_word, lstrip, rstrip } = object(entry, `added_tokens[${i}]`);
    if (typeof content !== "string" || content === "") throw unusable(`added_tokens[${i}].content`, content, "a text");
    if (!isId(id)) throw unusable(`added_tokens[${i}].id`, id, "a token id");
    if (single_word || lstrip || rstrip)
      throw unusable(`added_tokens[${i}]`, entry, "no single_word, lstrip or rstrip");
    if (special.has(content)) throw unusable(`added_tokens[${i}].content`, content, "every added token once");
    special.set(content, id);
  }
  return special;
}

const MAX_VOCABULARY = 2 ** 22; // twenty times Llama 4's; keeps a hostile id from sizing an array

const isId = (id: unknown): id is number =>
  typeof id === "number" && Number.isInteger(id) && id >= 0 && id < MAX_VOCABULARY;

// Puts the tokens in the order of their ids. A special token may stand in the vocabulary as well, under its id; under
// another id it is an ordinary token that looks the same.
function writeTokens(vocab: Json, special: ReadonlyMap<string, number>, writer: VocabularyWriter): void {
  const names: (string | undefined)[] = [];
  const place = (token: string, id: unknown) => {
    if (!isId(id) || names[id] !== undefined)
      throw unusable(`the id of ${shown(token)}`, id, "a whole number that no other token has");
    names[id] = token;
  };
  for (const [token, id] of special) place(token, id);
  for (const token of Object.keys(vocab)) if (special.get(token) !== vocab[token]) place(token, vocab[token]);
  for (let id = 0; id < names.length; id++) {
    const token = names[id];
    if (token === undefined || special.get(token) === id) writer.reserve(token);
    else if (writeAlphabet(token, writer)) writer.endToken();
    else throw unusable("model.vocab", token, "tokens in GPT-2's byte alphabet, or named among added_tokens");
  }
}

// What may come before BPE: one Split by a pattern and ByteLevel, or ByteLevel alone, which then cuts as GPT-2 does.
function readPattern(value: unknown): string {
  const top = object(value, "pre_tokenizer");
  const steps = top["type"] === "Sequence" ? array(top["pretokenizers"], "pre_tokenizer.pretokenizers") : [value];
  const patterns: string[] = [];
  let isByteLevel = false;
  for (const step of steps.map((s) => object(s, "pre_tokenizer"))) {
    if (step["type"] === "Split") {
      const { Regex: regex } = object(step["pattern"], "pre_tokenizer.pattern");
      const isolates = step["behavior"] === "Isolated" && !step["invert"];
      if (typeof regex !== "string" || !isolates) throw unusable("pre_tokenizer", step, "a Split by a Regex, Isolated");
      patterns.push(regex);
    } else if (step["type"] === "ByteLevel" && !step["add_prefix_space"]) {
      isByteLevel = true;
      if (step["use_regex"] ?? true) patterns.push(GPT2_PATTERN);
    } else throw unusable("pre_tokenizer", step, "Split and ByteLevel, without add_prefix_space");
  }
  const [pattern] = patterns;
  if (!isByteLevel || patterns.length !== 1 || pattern === undefined)
    throw unusable("pre_tokenizer", value, "one pattern and ByteLevel");
  return pattern;
}
