// Questions in words: what words mean, what things are, countries, sums, letters, finding something in a text, small talk.

import { type Draw, isHeldOut } from "./draw.ts";
import type { Country } from "./prose.ts";
import { article, capital, definition, type Sense } from "./words.ts";

export interface Turn {
  readonly question: string;
  readonly answer: string;
}

export interface Knowledge {
  /** Common words with the sense that is meant most often. */
  readonly words: readonly { readonly word: string; readonly sense: Sense }[];
  readonly senses: ReadonlyMap<string, Sense>;
  readonly countries: readonly Country[];
  readonly continents: readonly { readonly name: string; readonly capital: string; readonly continent: string }[];
  /** Which facts and templates may be asked: those that are learnt, or those that are held out. */
  readonly heldOut: boolean;
}

type Ask = (d: Draw, k: Knowledge) => Turn | undefined;

/** A question by a template, where this pair is on the side that is asked for. */
function by(
  d: Draw,
  k: Knowledge,
  fact: string,
  templates: readonly string[],
  fill: (template: string) => string,
  answer: string,
): Turn | undefined {
  const template = d.of(templates);
  return isHeldOut(`${fact} ${template}`) === k.heldOut ? { question: fill(template), answer } : undefined;
}

const means: Ask = (d, k) => {
  const { word, sense } = d.of(k.words);
  return by(
    d,
    k,
    word,
    [
      "What does {} mean?",
      "What is the meaning of {}?",
      "Explain the word {}.",
      "Define {}.",
      "Tell me what {} means.",
    ],
    (t) => t.replace("{}", `"${word}"`),
    definition(sense, word),
  );
};

const wordFor: Ask = (d, k) => {
  const { word, sense } = d.of(k.words);
  return by(
    d,
    k,
    `for ${word}`,
    ["Which word means: {}?", "What is the word for: {}?"],
    (t) => t.replace("{}", sense.gloss.split(";")[0]!),
    `${capital(word)}.`,
  );
};

const kindOf: Ask = (d, k) => {
  const { word, sense } = d.of(k.words);
  const parent = k.senses.get(sense.hypernyms[0] ?? "");
  if (sense.kind !== "noun" || !parent) return undefined;
  return by(
    d,
    k,
    `kind ${word}`,
    ["What kind of thing is {}?", "What is {} a kind of?"],
    (t) => t.replace("{}", article(word)),
    `${capital(article(word))} is a kind of ${parent.words[0]}.`,
  );
};

const isA: Ask = (d, k) => {
  const { word, sense } = d.of(k.words);
  const parent = k.senses.get(sense.hypernyms[0] ?? "");
  if (sense.kind !== "noun" || !parent) return undefined;
  const yes = d.chance(0.5);
  const other = yes ? parent : k.senses.get(d.of(k.words).sense.hypernyms[0] ?? "");
  if (!other || (!yes && other === parent)) return undefined;
  const asked = other.words[0]!;
  return by(
    d,
    k,
    `is ${word} ${asked}`,
    ["Is {} …?"],
    () => `Is ${article(word)} ${article(asked)}?`,
    yes ? `Yes, ${article(word)} is ${article(asked)}.` : `No, ${article(word)} is a kind of ${parent.words[0]}.`,
  );
};

const opposite: Ask = (d, k) => {
  const { word, sense } = d.of(k.words);
  const found = sense.antonyms.find(({ of }) => of === word);
  const other = found && k.senses.get(found.word)?.words[0];
  if (!other) return undefined;
  return by(
    d,
    k,
    `opposite ${word}`,
    ["What is the opposite of {}?", "What is not {}, but the other way round?"],
    (t) => t.replace("{}", word),
    `${capital(other)}.`,
  );
};

const capitalOf: Ask = (d, k) => {
  const { name, capital } = d.of(k.continents);
  return by(
    d,
    k,
    `capital ${name}`,
    ["What is the capital of {}?", "Which city is the capital of {}?", "Name the capital of {}."],
    (t) => t.replace("{}", name),
    d.chance(0.5) ? `${capital}.` : `The capital of ${name} is ${capital}.`,
  );
};

const continentOf: Ask = (d, k) => {
  const { name, continent } = d.of(k.continents);
  return by(
    d,
    k,
    `continent ${name}`,
    ["On which continent is {}?", "Where in the world is {}?"],
    (t) => t.replace("{}", name),
    `${name} is in ${continent}.`,
  );
};

const whereIs: Ask = (d, k) => {
  const { name, location } = d.of(k.countries);
  return by(
    d,
    k,
    `where ${name}`,
    ["Where is {}?", "Where does {} lie?"],
    (t) => t.replace("{}", name),
    `${name} is in ${location}.`,
  );
};

const sum: Ask = (d, k) => {
  const [a, b] = d.chance(0.5) ? [d.whole(0, 9), d.whole(0, 9)] : [d.whole(10, 99), d.whole(0, 99)];
  const minus = d.chance(0.4) && a >= b;
  const fact = `${a} ${minus ? "-" : "+"} ${b}`;
  if (isHeldOut(fact) !== k.heldOut) return undefined;
  return {
    question: d.of([`What is ${fact}?`, `${fact} = ?`, `How much is ${fact}?`]),
    answer: `${minus ? a - b : a + b}`,
  };
};

const letters: Ask = (d, k) => {
  const { word } = d.of(k.words);
  if (!/^[a-z]{3,9}$/.test(word) || isHeldOut(`letters ${word}`) !== k.heldOut) return undefined;
  return d.of<Turn>([
    { question: `Spell "${word}".`, answer: [...word].join("-") },
    { question: `How many letters has "${word}"?`, answer: `${word.length}` },
    { question: `What is the first letter of "${word}"?`, answer: `${word[0]}` },
    { question: `What is the last letter of "${word}"?`, answer: `${word.at(-1)}` },
  ]);
};

const things = ["password", "code", "secret number", "magic number", "room number", "pin"];

/** What lists and long texts are made of. */
export interface Findable extends Pick<Knowledge, "words"> {
  /**
   * Numbers of three to seven digits, each length as often, so that where a number ends is read and not guessed. Without
   * it, as evaluation has asked since the first run: from the range at hand, nine tenths of which have its most digits.
   */
  readonly anyLength?: boolean;
}

function number(d: Draw, { anyLength }: Findable, least: number, most: number): number {
  if (!anyLength) return d.whole(least, most);
  const power = 10 ** d.whole(2, 6);
  return d.whole(power, 10 * power - 1);
}

/** A line with a number among other lines, as many as `most` allows; asked for at the end. */
export function needle(d: Draw, k: Findable, mostLines: number): Turn {
  const filler = () => {
    const { word, sense } = d.of(k.words);
    return definition(sense, word);
  };
  const lines = Array.from({ length: d.whole(1, mostLines) }, filler);
  if (d.chance(0.5)) {
    const [thing, hidden] = [d.of(things), number(d, k, 100, 9999)];
    lines.splice(d.whole(0, lines.length), 0, `The ${thing} is ${hidden}.`);
    return { question: `${lines.join("\n")}\nWhat is the ${thing}?`, answer: `${hidden}` };
  }
  return lookup(d, k, Math.max(2, Math.min(12, 2 * mostLines)));
}

/**
 * One to four numbers among the lines of a text, so many characters long, all of them asked for. What is around them are
 * meanings of `words`, or a few lines again and again.
 */
export function needles(d: Draw, k: Findable, characters: number): Turn[] {
  const filler = () => {
    const { word, sense } = d.of(k.words);
    return definition(sense, word);
  };
  const few = d.chance(0.2) && Array.from({ length: d.whole(3, 12) }, filler);
  const lines: string[] = [];
  for (let left = characters; left > 0; left -= lines.at(-1)!.length + 1)
    lines.push(few ? few[lines.length % few.length]! : filler());
  const hidden = d.several(things, d.whole(1, 4)).map((thing) => ({ thing, its: number(d, k, 100, 9999) }));
  for (const { thing, its } of hidden) lines.splice(d.whole(0, lines.length), 0, `The ${thing} is ${its}.`);
  return hidden.map(({ thing, its }, i) => ({
    question: `${i === 0 ? `${lines.join("\n")}\n` : ""}What is the ${thing}?`,
    answer: `${its}`,
  }));
}

/** Words with numbers, and a word to find the number of. */
export function lookup(d: Draw, k: Findable, mostPairs: number): Turn {
  const pairs = d.several(k.words, d.whole(2, mostPairs)).map(({ word }) => [word, number(d, k, 10, 999)] as const);
  const [key, value] = d.of(pairs);
  return {
    question: `${pairs.map(([word, its]) => `${word}: ${its}`).join("\n")}\nWhich number belongs to "${key}"?`,
    answer: `${value}`,
  };
}

/** A list to say again: every token of the answer stands in the question, behind the one before it. */
export function copy(d: Draw, k: Findable, mostItems: number): Turn {
  const word = () => d.of(k.words).word;
  const item = d.of([
    word,
    () => `${number(d, k, 10, 9999)}`,
    () => (d.chance(0.5) ? word() : `${number(d, k, 10, 999)}`),
  ]);
  const list = Array.from({ length: d.whole(3, mostItems) }, item).join(d.of([" ", " ", "\n", ", "]));
  return { question: `${d.of(["Repeat: ", "Say again: ", "Copy: ", "Once more:\n"])}${list}`, answer: list };
}

/** Facts, then the same facts again in another order, as statements or as questions: a text that is half known. */
export function recall(d: Draw, k: Findable, mostLines: number): string {
  const shuffled = <T>(list: readonly T[]) => d.several(list, list.length);
  if (d.chance(0.5)) {
    const pairs = d
      .several(k.words, d.whole(2, 1 + mostLines))
      .map(({ word }) => ({ word, its: number(d, k, 10, 999) }));
    const told = pairs.map(({ word, its }) => `${word}: ${its}`);
    const asked = d.chance(0.5);
    const again = shuffled(pairs).map(({ word, its }) =>
      asked ? `Which number belongs to "${word}"? ${its}` : `${word}: ${its}`,
    );
    return [...told, ...again.slice(0, asked ? Math.ceil(mostLines / 2) : undefined)].join("\n");
  }
  const hidden = d.several(things, d.whole(1, 4)).map((thing) => ({ thing, its: number(d, k, 100, 9999) }));
  const lines = Array.from({ length: d.whole(1, Math.max(1, Math.floor(mostLines / 2))) }, () => {
    const { word, sense } = d.of(k.words);
    return definition(sense, word);
  });
  for (const { thing, its } of hidden) lines.splice(d.whole(0, lines.length), 0, `The ${thing} is ${its}.`);
  const again = shuffled(hidden).map(({ thing, its }) =>
    d.chance(0.5) ? `The ${thing} is ${its}.` : `What is the ${thing}? ${its}`,
  );
  return [...lines, ...again].join("\n");
}

const smallTalk: readonly (readonly [readonly string[], readonly string[]])[] = [
  [
    ["Hello!", "Hi", "Hello there.", "Good morning!", "Hey"],
    ["Hello! Show me a picture, or ask me what a word means.", "Hello! What would you like to know?"],
  ],
  [
    ["Who are you?", "What are you?", "What is your name?"],
    ["I am a very small Llama 4, trained on two processor cores. I know some words, some pictures and some flags."],
  ],
  [
    ["What can you do?", "Help", "What do you know?"],
    [
      "I can name pictures of common things, count up to five, say what words mean, and find something in a long text. I know little else.",
    ],
  ],
  [
    ["Thank you.", "Thanks!", "That is right.", "Well done."],
    ["You are welcome!", "Gladly."],
  ],
  [["Goodbye.", "Bye!", "See you."], ["Goodbye!"]],
  [["How are you?", "How do you do?"], ["I am fine, thank you. What shall we look at?"]],
  [
    [
      "Who won the election?",
      "What is the news today?",
      "What time is it?",
      "What is the weather like?",
      "Who is the president?",
    ],
    ["I do not know: I learnt from old books and a dictionary."],
  ],
  [
    [
      "Write a program for me.",
      "Solve this equation.",
      "Write an essay.",
      "Give me medical advice.",
      "What shall I do with my money?",
    ],
    ["I cannot do that: I am too small."],
  ],
];

const talk: Ask = (d, k) => {
  const [questions, answers] = d.of(smallTalk);
  const question = d.of(questions);
  return isHeldOut(`talk ${question}`) === k.heldOut ? { question, answer: d.of(answers) } : undefined;
};

/** Kinds of questions with their shares. */
export const kinds: readonly (readonly [share: number, ask: Ask])[] = [
  [30, means],
  [8, wordFor],
  [8, kindOf],
  [8, isA],
  [6, opposite],
  [9, capitalOf],
  [4, continentOf],
  [4, whereIs],
  [8, sum],
  [7, letters],
  [8, talk],
];

/** A question of some kind, each as often as its share says. */
export function ask(d: Draw, k: Knowledge): Turn {
  for (;;) {
    let left = d.number() * kinds.reduce((total, [share]) => total + share, 0);
    const [, kind] = kinds.find(([share]) => {
      left -= share;
      return left < 0;
    })!;
    const turn = kind(d, k);
    if (turn) return turn;
  }
}
