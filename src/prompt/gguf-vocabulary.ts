// The vocabulary inside a GGUF file: the keys `tokenizer.ggml.*`, spec gguf.md §2.
import { CheckpointError } from "../tensor/errors.ts";
import { writeAlphabet } from "./byte-alphabet.ts";
import { VocabularyWriter } from "./byte-pairs.ts";
import { namedMerges } from "./merges.ts";
import { GPT2_PATTERN, LLAMA3_PATTERN, LLAMA4_PATTERN } from "./pre-tokenizer.ts";
import { shown } from "./shown.ts";
import { Tokenizer, type TokenizerOptions } from "./tokenizer.ts";
import { endOf, ordinaryNames } from "./tokenizer-json.ts";

/** The values of the keys of the same names. */
export interface GgufVocabulary {
  /** `tokenizer.ggml.model`; only "gpt2" is byte-level BPE. */
  readonly model?: string;
  /** `tokenizer.ggml.pre`: the pre-tokeniser's name. */
  readonly pre: string;
  /** Ordinary tokens in GPT-2's alphabet, special ones literally. */
  readonly tokens: readonly string[];
  /** `tokenizer.ggml.token_type`: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte. */
  readonly tokenTypes: ArrayLike<number>;
  /** "left right" each; absent: the ids are the ranks. */
  readonly merges?: readonly string[] | undefined;
}

const NORMAL = 1;
const CONTROL = 3;
const UNUSED = 5;
const BYTE = 6;

// llama.cpp's names; the first that stands for a pattern is the one written.
const PATTERNS: ReadonlyMap<string, string> = new Map([
  ["llama4", LLAMA4_PATTERN],
  ["gpt-4o", LLAMA4_PATTERN],
  ["llama-bpe", LLAMA3_PATTERN],
  ["llama3", LLAMA3_PATTERN],
  ["llama-v3", LLAMA3_PATTERN],
  ["gpt-2", GPT2_PATTERN],
]);

/** Opens the vocabulary of a GGUF file; `bos` and `eos` are the ids under `tokenizer.ggml.*_token_id`. */
export function fromGguf(
  { model = "gpt2", pre, tokens, tokenTypes, merges }: GgufVocabulary,
  options: TokenizerOptions = {},
): Tokenizer {
  if (model !== "gpt2") throw unusable("tokenizer.ggml.model", model, '"gpt2", a byte-level BPE');
  const pattern = PATTERNS.get(pre);
  if (pattern === undefined) throw unusable("tokenizer.ggml.pre", pre, `one of ${[...PATTERNS.keys()].join(", ")}`);
  if (tokenTypes.length !== tokens.length)
    throw unusable(
      "tokenizer.ggml.token_type",
      `${tokenTypes.length} entries`,
      `one for each of ${tokens.length} tokens`,
    );
  const special = new Map<string, number>();
  const writer = new VocabularyWriter();
  for (const [id, token] of tokens.entries()) {
    const type = tokenTypes[id]!;
    if (!(type >= NORMAL && type < BYTE)) throw unusable(`the type of token ${id}`, type, "1 to 5");
    if (type === UNUSED) writer.reserve();
    else if (type !== NORMAL) {
      if (special.has(token)) throw unusable(`special token ${id}`, token, "every special token once");
      special.set(token, id);
      writer.reserve(token);
    } else {
      if (!writeAlphabet(token, writer)) throw unusable(`token ${id}`, token, "characters of GPT-2's byte alphabet");
      writer.endToken();
    }
  }
  return new Tokenizer(
    {
      vocabulary: writer.finish(),
      special,
      merges: merges && namedMerges(merges),
      wholePieces: pre !== "gpt-2",
      pattern,
    },
    options,
  );
}

/** The vocabulary as GGUF stores it; merges are derived from the ranks where the tokenizer has none of its own. */
export function toGguf(tokenizer: Tokenizer, { chatTemplate }: { readonly chatTemplate?: string | undefined } = {}) {
  const pre = [...PATTERNS].find(([, pattern]) => pattern === tokenizer.pattern)?.[0];
  if (pre === undefined)
    throw unusable(
      "the pre-tokeniser",
      tokenizer.pattern,
      `one that GGUF has a name for: ${[...PATTERNS.keys()].join(", ")}`,
    );
  const names = ordinaryNames(tokenizer);
  const textOf = new Map([...tokenizer.special].map(([text, id]) => [id, text]));
  const merges = tokenizer.mergeList();
  const pairs: string[] = [];
  for (let i = 0; i < merges.length; i += 3) pairs.push(`${names[merges[i]!]} ${names[merges[i + 1]!]}`);
  return {
    model: "gpt2",
    pre,
    tokens: names.map((name, id) => name ?? textOf.get(id) ?? `[PAD${id}]`),
    tokenTypes: Int32Array.from(names, (name, id) => (name !== undefined ? NORMAL : textOf.has(id) ? CONTROL : UNUSED)),
    merges: pairs,
    bos: tokenizer.bos,
    eos: endOf(tokenizer, chatTemplate),
    pad: tokenizer.special.get("<|finetune_right_pad|>"),
  } satisfies GgufVocabulary & Record<string, unknown>;
}

const unusable = (key: string, found: unknown, expected: string) =>
  new CheckpointError(`GGUF vocabulary: ${key} is ${shown(found)}; expected ${expected}`);
