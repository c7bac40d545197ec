// Questions about pictures whose answers are known, because the pictures were made for them.

import type { Draw } from "./draw.ts";
import {
  type Colour,
  type Concept,
  colours,
  type Designer,
  Scene,
  type Sprite,
  shapeNames,
  shapeSprite,
  side,
} from "./pictures.ts";
import type { Turn } from "./text-chats.ts";
import { article, capital } from "./words.ts";

/** A question with its pictures, each the bytes of a tile, and the answer. */
export interface Asked {
  readonly content: readonly (
    | string
    | { readonly picture: Uint8Array }
    | { readonly frames: readonly Uint8Array[]; readonly times: readonly number[] }
  )[];
  readonly answer: string;
  /** Where the answer may have several forms: all of them. */
  readonly accepted?: readonly string[];
  /** Asked of the same pictures afterwards. */
  readonly further?: readonly Turn[];
}

export interface World {
  readonly concepts: readonly Concept[];
  readonly designers: readonly Designer[];
  /** "fr" -> emoji -> name, for the languages of Llama 4. */
  readonly languages: ReadonlyMap<string, ReadonlyMap<string, string>>;
  readonly flags: readonly {
    readonly name: string;
    readonly capital: string;
    readonly continent: string;
    readonly sprite: Sprite;
  }[];
}

const picture = (scene: Scene) => ({ picture: scene.pixels });

/** One of the renderings that this world may show. */
function spriteOf(d: Draw, { sprites }: Concept, { designers }: World): Sprite {
  return sprites.get(d.of(designers.filter((designer) => sprites.has(designer))))!;
}

const ground = (d: Draw): Colour => (d.chance(0.4) ? colours[0]! : d.of(colours));

/** A thing alone, almost as large as the picture, a little off its middle. */
export function alone(d: Draw, sprite: Sprite, colour = ground(d)): Scene {
  const size = side * (0.62 + 0.36 * d.number());
  const slack = Math.max(0, side - size) / 2 + 2;
  const near = () => side / 2 + slack * (2 * d.number() - 1);
  return new Scene(colour, d).put(sprite, near(), near(), size, {
    angle: 0.3 * (d.number() - 0.5),
    mirror: d.chance(0.3),
  });
}

type Ask = (d: Draw, w: World) => Asked;

const nameQuestions = [
  "What is this?",
  "What do you see?",
  "What is in the picture?",
  "Name it.",
  "Can you tell me what this is?",
  "What does the picture show?",
];

/** "a lion", but "scissors" and "bread" as they are. */
export const named = (label: string) =>
  /(s|bread|rice|honey|milk|beer|sake|sushi|corn|ice|bacon|meat|butter|salt|seedling|spaghetti|herb|tea|paint|mail|glue)$/.test(
    label,
  ) &&
  !/(bus|octopus|walrus|compass|glass|dress|cactus|hippopotamus|lotus|hibiscus|cross|tennis|abacus|rhinoceros)$/.test(
    label,
  )
    ? label
    : article(label);

export const nameIt: Ask = (d, w) => {
  const concept = d.of(w.concepts);
  const question = d.of(nameQuestions);
  const accepted = [`${capital(named(concept.label))}.`, `This is ${named(concept.label)}.`];
  return {
    content: [picture(alone(d, spriteOf(d, concept, w))), question],
    answer: accepted[d.chance(0.3) ? 1 : 0]!,
    accepted,
  };
};

/** No question at all: a picture and its name, for learning to see. */
export function labelled(d: Draw, w: World): { picture: Uint8Array; label: string } {
  const concept = d.of(w.concepts);
  return { picture: alone(d, spriteOf(d, concept, w)).pixels, label: `${concept.label} (${concept.group})` };
}

const kindQuestions = [
  "What kind of thing is it?",
  "Is it an animal, a plant, food or something else?",
  "What sort of thing do you see?",
];
const kinds = {
  animal: "An animal",
  plant: "A plant",
  food: "Food",
  drink: "A drink",
  vehicle: "A vehicle",
  sport: "Something for sport",
  clothing: "Something to wear",
  instrument: "A musical instrument",
  object: "An object",
};

export const groupOf: Ask = (d, w) => {
  const concept = d.of(w.concepts);
  const question = d.of(kindQuestions);
  return { content: [picture(alone(d, spriteOf(d, concept, w))), question], answer: `${kinds[concept.group]}.` };
};

const groundQuestions = ["What colour is the background?", "What colour is behind it?"];

export const groundColour: Ask = (d, w) => {
  const colour = d.of(colours);
  const scene = alone(d, spriteOf(d, d.of(w.concepts), w), colour);
  return {
    content: [picture(scene), d.of(groundQuestions)],
    answer: `${capital(colour.name)}.`,
  };
};

export const shapeColour: Ask = (d) => {
  const [behind, colour] = d.several(colours, 2) as [Colour, Colour];
  const shape = d.of(shapeNames);
  const content = picture(alone(d, shapeSprite(shape, colour), behind));
  return d.chance(0.5)
    ? {
        content: [content, d.of(["What shape is this?", "Which shape do you see?"])],
        answer: `${capital(article(shape))}.`,
      }
    : {
        content: [content, d.of([`What colour is the ${shape}?`, `Which colour has the ${shape}?`])],
        answer: `${capital(colour.name)}.`,
      };
};

const numerals = ["No", "One", "Two", "Three", "Four", "Five"];
const plural = (label: string) =>
  /(s|x|ch|sh)$/.test(label)
    ? `${label}es`
    : /[^aeiou]y$/.test(label)
      ? `${label.slice(0, -1)}ies`
      : /(sheep|deer)$/.test(label)
        ? label
        : `${label}s`;

/** So many of a thing, apart on a grid of three by three. */
function onGrid(d: Draw, sprite: Sprite, n: number, behind: Colour): Scene {
  const cell = side / 3;
  const scene = new Scene(behind, d);
  for (const place of d.several([0, 1, 2, 3, 4, 5, 6, 7, 8], n)) {
    const jitter = () => 2 * d.number() - 1;
    scene.put(
      sprite,
      ((place % 3) + 0.5) * cell + jitter(),
      (Math.floor(place / 3) + 0.5) * cell + jitter(),
      cell * (0.8 + 0.15 * d.number()),
    );
  }
  return scene;
}

/** One to five of a thing. */
export const count: Ask = (d, w) => {
  const concept = d.of(w.concepts);
  const n = d.whole(1, 5);
  const sprite = spriteOf(d, concept, w);
  const scene = onGrid(d, sprite, n, ground(d));
  const many = plural(concept.label);
  return {
    content: [
      picture(scene),
      d.of(["How many are there?", `How many ${many} are there?`, `How many ${many} do you see?`, "Count them."]),
    ],
    answer: `${numerals[n]}.`,
  };
};

/** Two things, small, beside or above each other. */
function twoThings(d: Draw, w: World, shown: readonly Concept[], isBeside: boolean): Scene {
  const scene = new Scene(ground(d), d);
  for (const [i, concept] of shown.entries()) {
    const along = side * (i === 0 ? 0.27 : 0.73);
    const [x, y] = isBeside ? [along, side / 2] : [side / 2, along];
    scene.put(spriteOf(d, concept, w), x, y, side * (0.4 + 0.08 * d.number()));
  }
  return scene;
}
const sides = (isBeside: boolean) => (isBeside ? ["on the left", "on the right"] : ["at the top", "at the bottom"]);

/** What is where, or which two. */
export const place: Ask = (d, w) => {
  const shown = d.several(w.concepts, 2) as [Concept, Concept];
  const isBeside = d.chance(0.5);
  const scene = twoThings(d, w, shown, isBeside);
  const at = d.chance(0.5) ? 0 : 1;
  const where = sides(isBeside)[at]!;
  if (d.chance(0.35))
    return {
      content: [picture(scene), d.of(["What do you see?", "Which two things are there?"])],
      answer: `${namesIn(shown)}.`,
    };
  return {
    content: [picture(scene), d.of([`What is ${where}?`, `What do you see ${where}?`])],
    answer: answerOf(shown[at]!),
  };
};

const listed = (items: readonly string[]) =>
  capital(items.length > 1 ? `${items.slice(0, -1).join(", ")} and ${items.at(-1)}` : items[0]!);
const namesIn = (shown: readonly Concept[]) => listed(shown.map(({ label }) => named(label)));

/**
 * "A dog and a frog: no." What is seen is said before what follows from it, which is then found among words (after Nye et al.
 * 2021, arXiv:2112.00114). Asked for the verdict alone, the model guessed: in two million tokens it had not learnt to look for a
 * word in pictures.
 */
const saidOf = (shown: readonly Concept[], verdict: string) => `${namesIn(shown)}: ${verdict}.`;

/**
 * "A dog on the left and a frog on the right: a frog on the right." What is asked for is said once more, so that what
 * stood behind it comes again, as in a list that is looked up. Of "A dog and a frog: on the right." the verdict was guessed still.
 * What is not there is at -1: "none".
 */
const foundAmong = (shown: readonly Concept[], wheres: readonly string[], at: number) => {
  const items = shown.map(({ label }, i) => `${named(label)} ${wheres[i]}`);
  return `${listed(items)}: ${items[at] ?? "none"}.`;
};

const sameQuestions = [
  "Are these the same?",
  "Is it the same thing in both pictures?",
  "Do both pictures show the same?",
];

/** Two pictures: of the same thing, or not. */
export const same: Ask = (d, w) => {
  const [a, other] = d.several(w.concepts, 2) as [Concept, Concept];
  const b = d.chance(0.5) ? a : other;
  const question = d.of(sameQuestions);
  const answer = saidOf([a, b], a === b ? "yes" : "no");
  return { content: [picture(alone(d, spriteOf(d, a, w))), picture(alone(d, spriteOf(d, b, w))), question], answer };
};

const ordinals = ["first", "second", "third", "fourth"];

/** Some pictures, and which of them shows what is asked for. */
export const which: Ask = (d, w) => {
  const shown = d.several(w.concepts, d.whole(2, 4));
  const at = d.whole(0, shown.length - 1);
  const question = d.of([`Which picture shows ${named(shown[at]!.label)}?`, `Where is the ${shown[at]!.label}?`]);
  return {
    content: [...shown.map((concept) => picture(alone(d, spriteOf(d, concept, w)))), question],
    answer: foundAmong(shown, ordinals, at),
  };
};

/** A clip of three to five frames: something goes somewhere, grows, shrinks or turns. */
export const clip: Ask = (d, w) => {
  const concept = d.of(w.concepts);
  const [sprite, colour, frames] = [spriteOf(d, concept, w), ground(d), d.whole(3, 5)];
  const way = d.of(["right", "left", "up", "down", "grows", "shrinks"] as const);
  const base = side * (0.36 + 0.1 * d.number());
  const pictures = Array.from({ length: frames }, (_, i) => {
    const t = i / (frames - 1);
    const run = (forward: boolean) => side * (0.25 + 0.5 * (forward ? t : 1 - t));
    const x = way === "right" ? run(true) : way === "left" ? run(false) : side / 2;
    const y = way === "down" ? run(true) : way === "up" ? run(false) : side / 2;
    const size = way === "grows" ? base * (0.5 + 1.5 * t) : way === "shrinks" ? base * (2 - 1.5 * t) : base;
    return new Scene(colour).put(sprite, x, y, size).pixels;
  });
  const content = { frames: pictures, times: pictures.map((_, i) => i / 2) };
  const does =
    way === "grows" || way === "shrinks" ? way : `moves ${["up", "down"].includes(way) ? way : `to the ${way}`}`;
  if (d.chance(0.3)) return { content: [content, "What is in the clip?"], answer: `${capital(named(concept.label))}.` };
  const accepted = [`It ${does}.`, `The ${concept.label} ${does}.`];
  return {
    content: [content, d.of(["What happens?", "What happens in the clip?", "What does it do?"])],
    answer: accepted[d.chance(0.5) ? 0 : 1]!,
    accepted,
  };
};

const languageNames: Readonly<Record<string, string>> = {
  ar: "Arabic",
  de: "German",
  fr: "French",
  hi: "Hindi",
  id: "Indonesian",
  it: "Italian",
  pt: "Portuguese",
  es: "Spanish",
  fil: "Tagalog",
  th: "Thai",
  vi: "Vietnamese",
};

export const translate: Ask = (d, w) => {
  const concept = d.of(w.concepts);
  const [code, names] = d.of([...w.languages]);
  const name = names.get(concept.emoji);
  if (!name) return translate(d, w);
  const language = languageNames[code]!;
  if (d.chance(0.5))
    return {
      content: [
        d.of([
          `What is ${article(concept.label)} in ${language}?`,
          `How do you say "${concept.label}" in ${language}?`,
        ]),
      ],
      answer: `${capital(name)}.`,
    };
  return {
    content: [picture(alone(d, spriteOf(d, concept, w))), `What is this in ${language}?`],
    answer: `${capital(name)}.`,
  };
};

export const flag: Ask = (d, w) => {
  const country = d.of(w.flags);
  const scene = new Scene(ground(d), d).put(country.sprite, side / 2, side / 2, side * (0.85 + 0.15 * d.number()));
  const asked = d.of([
    ["Whose flag is this?", country.name],
    ["Which country's flag is this?", country.name],
    ["What is the capital of the country with this flag?", country.capital],
    ["On which continent is the country with this flag?", country.continent],
  ] as const);
  return { content: [picture(scene), asked[0]], answer: `${asked[1]}.` };
};

/** Whether it is what the question names; half of the wrong names are of its kind. */
export const isIt: Ask = (d, w) => {
  const concept = d.of(w.concepts);
  const kin = w.concepts.filter((other) => other.group === concept.group && other !== concept);
  const other = kin.length > 0 && d.chance(0.5) ? d.of(kin) : d.of(w.concepts);
  const asked = d.chance(0.5) ? concept : other;
  return {
    content: [
      picture(alone(d, spriteOf(d, concept, w))),
      d.of([`Is this ${named(asked.label)}?`, `Do you see ${named(asked.label)}?`]),
    ],
    answer: saidOf([concept], asked === concept ? "yes" : "no"),
  };
};

/** Two things, and on which side one of them is. */
export const sideOfIt: Ask = (d, w) => {
  const shown = d.several(w.concepts, 2) as [Concept, Concept];
  const isBeside = d.chance(0.5);
  const scene = twoThings(d, w, shown, isBeside);
  const at = d.whole(0, 1);
  const question = sideQuestion(d, shown[at]!, isBeside);
  return { content: [picture(scene), question], answer: foundAmong(shown, sides(isBeside), at) };
};

const sideQuestion = (d: Draw, { label }: Concept, isBeside: boolean) =>
  isBeside
    ? d.of([`Is the ${label} on the left or on the right?`, `On which side is the ${label}?`])
    : d.of([`Is the ${label} at the top or at the bottom?`, `Is the ${label} above or below?`]);

/** A thing alone, half as large as otherwise, anywhere. */
export const nameSmall: Ask = (d, w) => {
  const concept = d.of(w.concepts);
  const size = small(d);
  const scene = new Scene(ground(d), d).put(spriteOf(d, concept, w), within(d, size), within(d, size), size);
  return { content: [picture(scene), d.of(nameQuestions)], answer: answerOf(concept) };
};

const small = (d: Draw) => side * (0.36 + 0.2 * d.number());
const within = (d: Draw, size: number) => size / 2 + (side - size) * d.number();

// ---- several questions about the same pictures ----
//
// What evaluation asks, and more, in any order: a picture that is there is asked about again, and every answer is learnt from.
// Verdicts are given in the same words whenever they are asked for, for the model did not carry them over from first questions
// to later ones: after "What is this?" of a dog, "Is this a camel?" was "Yes, a dog."

const asking = (content: Asked["content"], [first, ...further]: readonly Turn[]): Asked => ({
  content: [...content, first!.question],
  answer: first!.answer,
  ...(further.length > 0 && { further }),
});

const answerOf = ({ label }: Concept) => `${capital(named(label))}.`;

/** One to four of the turns, each as often first. */
const someOf = (d: Draw, turns: readonly Turn[]) => d.several(turns, d.whole(1, 4));

/** Whether a thing is among those that are seen: of one that is, and of one that is not, half of them of its kind. */
function verdicts(d: Draw, w: World, shown: readonly Concept[], questions: readonly string[]): Turn[] {
  const present = d.of(shown);
  const absent = another(d, w, shown);
  return [present, absent].map((concept) => ({
    question: d.of(questions).replace("{}", named(concept.label)),
    answer: saidOf(shown, concept === present ? "yes" : "no"),
  }));
}

/** One that is not shown, and is no other name of what is; half of them are of the kind of one that is. */
function another(d: Draw, w: World, shown: readonly Concept[]): Concept {
  const others = w.concepts.filter((concept) => !shown.some((seen) => seen === concept || areAlike(seen, concept)));
  const { group } = d.of(shown);
  const kin = others.filter((concept) => concept.group === group);
  return d.of(kin.length > 0 && d.chance(0.5) ? kin : others);
}

/** Things of which one may be called the other, or look like it: an eagle is a bird, and nobody is told that it is none. */
const alike: readonly (readonly string[])[] = [
  ["bird", "eagle", "duck", "chicken", "rooster", "penguin", "baby chick", "hatching chick", "poultry leg"],
  ["bug", "ant", "butterfly", "spider", "scorpion", "snail"],
  ["ship", "sailboat", "speedboat", "canoe"],
  ["automobile", "oncoming automobile", "taxi", "police car", "delivery truck"],
  ["train", "bullet train", "light rail", "metro", "tram", "tram car", "railway car", "mountain railway", "locomotive"],
  [
    "blossom",
    "cherry blossom",
    "white flower",
    "hibiscus",
    "rose",
    "tulip",
    "sunflower",
    "wilted flower",
    "bouquet",
    "rosette",
  ],
  ["books", "blue book", "green book", "closed book", "open book"],
  ["minibus", "oncoming bus"],
  ["fish", "tropical fish", "blowfish", "shark", "dolphin", "whale", "spouting whale"],
  ["dog", "poodle"],
  ["deciduous tree", "evergreen tree", "palm tree"],
  ["bread", "baguette bread", "croissant"],
  ["ox", "cow", "water buffalo"],
  ["ram", "ewe", "goat"],
  ["mouse", "rat"],
  ["camera", "movie camera", "video camera"],
  ["shrimp", "fried shrimp"],
  ["pig", "boar", "pig nose"],
  ["motorcycle", "motor scooter", "kick scooter"],
  ["wine glass", "tumbler glass", "cocktail glass", "tropical drink"],
  ["glasses", "sunglasses"],
  ["cooked rice", "rice ball", "curry rice", "rice cracker"],
  ["handbag", "purse", "clutch bag", "briefcase"],
  ["fallen leaf", "maple leaf", "herb", "seedling"],
];
const areAlike = ({ label: a }: Concept, { label: b }: Concept) =>
  alike.some((names) => names.includes(a) && names.includes(b));

/** A thing alone, large or small: its name, its kind, its ground, and whether it is this or that. */
export const talkOfOne: Ask = (d, w) => {
  const concept = d.of(w.concepts);
  const colour = ground(d);
  const sprite = spriteOf(d, concept, w);
  const turns = [
    { question: d.of(nameQuestions), answer: answerOf(concept) },
    { question: d.of(kindQuestions), answer: `${kinds[concept.group]}.` },
    { question: d.of(groundQuestions), answer: `${capital(colour.name)}.` },
    ...verdicts(d, w, [concept], ["Is this {}?", "Do you see {}?", "Is it {}?"]),
  ];
  const size = small(d);
  const scene = d.chance(0.6)
    ? alone(d, sprite, colour)
    : new Scene(colour, d).put(sprite, within(d, size), within(d, size), size);
  return asking([picture(scene)], someOf(d, turns));
};

/** Two to four things, small: what is where, all of them, and whether one is there. Two lie beside or above each other, more in the corners. */
export const talkOfPlaces: Ask = (d, w) => {
  const shown = d.several(w.concepts, d.of([2, 2, 2, 2, 3, 4]));
  const [near, far] = [side * 0.27, side * 0.73];
  type Where = readonly [where: string, x: number, y: number];
  const corners: readonly Where[] = [
    ["at the top left", near, near],
    ["at the top right", far, near],
    ["at the bottom left", near, far],
    ["at the bottom right", far, far],
  ];
  const beside: readonly Where[] = [
    ["on the left", near, side / 2],
    ["on the right", far, side / 2],
  ];
  const above: readonly Where[] = [
    ["at the top", side / 2, near],
    ["at the bottom", side / 2, far],
  ];
  const free = shown.length > 2 ? corners : d.of([beside, above]);
  const taken = d.several(free, shown.length);
  const places = free.filter((at) => taken.includes(at));
  const scene = new Scene(ground(d), d);
  for (const [i, [, x, y]] of places.entries())
    scene.put(spriteOf(d, shown[i]!, w), x, y, side * (0.4 + 0.08 * d.number()));
  const wheres = places.map(([where]) => where);
  const isBeside = free === beside;
  const onWhichSide = (concept: Concept) => ({
    question: sideQuestion(d, concept, isBeside),
    answer: foundAmong(shown, wheres, shown.indexOf(concept)),
  });
  const turns = [
    {
      question: d.of([
        "What do you see?",
        shown.length === 2 ? "Which two things are there?" : "Which things are there?",
      ]),
      answer: `${namesIn(shown)}.`,
    },
    ...shown.map((concept, i) => ({
      question: d.of([`What is ${wheres[i]}?`, `What do you see ${wheres[i]}?`]),
      answer: answerOf(concept),
    })),
    ...verdicts(d, w, shown, ["Do you see {}?", "Is there {}?"]),
    ...(shown.length === 2 ? shown.map(onWhichSide) : []),
    ...(shown.length === 2 && d.chance(0.3) ? [onWhichSide(another(d, w, shown))] : []),
  ];
  return asking([picture(scene)], someOf(d, turns));
};

/** Two to four pictures: what each of them shows, which of them shows a thing, and whether two show the same. */
export const talkOfPictures: Ask = (d, w) => {
  const different = d.several(w.concepts, d.of([2, 2, 3, 4]));
  const isSame = different.length === 2 && d.chance(0.4);
  const shown = isSame ? [different[0]!, different[0]!] : different;
  const where = (concept: Concept) => ({
    question: d.of([`Which picture shows ${named(concept.label)}?`, `Where is the ${concept.label}?`]),
    answer: foundAmong(shown, ordinals, shown.indexOf(concept)),
  });
  const whether = { question: d.of(sameQuestions), answer: saidOf(shown, isSame ? "yes" : "no") };
  const turns = [
    { question: "What do the pictures show?", answer: `${namesIn(shown)}.` },
    ...shown.map((concept, at) => ({
      question: `What does the ${ordinals[at]} picture show?`,
      answer: answerOf(concept),
    })),
    ...(isSame ? [] : shown.map(where)),
    ...(!isSame && d.chance(0.4) ? [where(another(d, w, shown))] : []),
    ...(shown.length === 2 ? [whether] : []),
    ...verdicts(d, w, shown, ["Does one of them show {}?"]),
  ];
  return asking(
    shown.map((concept) => picture(alone(d, spriteOf(d, concept, w)))),
    someOf(d, turns),
  );
};

/** One to five of a thing, or of a shape in a colour: how many, and what. */
export const talkOfMany: Ask = (d, w) => {
  const [behind, colour] = d.several(colours, 2) as [Colour, Colour];
  const isShape = d.chance(0.5);
  const [shape, concept, n] = [d.of(shapeNames), d.of(w.concepts), d.whole(1, 5)];
  const scene = onGrid(d, isShape ? shapeSprite(shape, colour) : spriteOf(d, concept, w), n, behind);
  const label = isShape ? shape : concept.label;
  const turns = [
    {
      question: d.of(["How many are there?", `How many ${plural(label)} are there?`, "Count them."]),
      answer: `${numerals[n]}.`,
    },
    { question: d.of(groundQuestions), answer: `${capital(behind.name)}.` },
    ...(n > 1 && isShape ? [{ question: "What colour are they?", answer: `${capital(colour.name)}.` }] : []),
    ...(n > 1 && isShape ? [{ question: "What are they?", answer: `${capital(plural(shape))}.` }] : []),
    ...(n === 1 && !isShape ? verdicts(d, w, [concept], ["Do you see {}?"]) : []),
  ];
  return asking([picture(scene)], d.several(turns, 3));
};

/** The kind of a thing, then whether it is this or that: a verdict that is not the first question, and no name said before. */
export const isItThen: Ask = (d, w) => {
  const concept = d.of(w.concepts);
  const before = { question: d.of(kindQuestions), answer: `${kinds[concept.group]}.` };
  const asked = d.of(verdicts(d, w, [concept], ["Is this {}?", "Do you see {}?"]));
  return asking([picture(alone(d, spriteOf(d, concept, w)))], [before, asked]);
};
