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

export const groupOf: Ask = (d, w) => {
  const concept = d.of(w.concepts);
  const question = d.of([
    "What kind of thing is it?",
    "Is it an animal, a plant, food or something else?",
    "What sort of thing do you see?",
  ]);
  const groups = {
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
  return { content: [picture(alone(d, spriteOf(d, concept, w))), question], answer: `${groups[concept.group]}.` };
};

export const groundColour: Ask = (d, w) => {
  const colour = d.of(colours);
  const scene = alone(d, spriteOf(d, d.of(w.concepts), w), colour);
  return {
    content: [picture(scene), d.of(["What colour is the background?", "What colour is behind it?"])],
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
      : /(sheep|fish|deer)$/.test(label)
        ? label
        : `${label}s`;

/** One to five of a thing, apart on a grid of three by three. */
export const count: Ask = (d, w) => {
  const concept = d.of(w.concepts);
  const n = d.whole(1, 5);
  const [sprite, cell] = [spriteOf(d, concept, w), side / 3];
  const scene = new Scene(ground(d), d);
  for (const place of d.several([0, 1, 2, 3, 4, 5, 6, 7, 8], n)) {
    const jitter = () => 2 * d.number() - 1;
    scene.put(
      sprite,
      ((place % 3) + 0.5) * cell + jitter(),
      (Math.floor(place / 3) + 0.5) * cell + jitter(),
      cell * (0.8 + 0.15 * d.number()),
    );
  }
  const many = plural(concept.label);
  return {
    content: [
      picture(scene),
      d.of(["How many are there?", `How many ${many} are there?`, `How many ${many} do you see?`, "Count them."]),
    ],
    answer: `${numerals[n]}.`,
  };
};

/** Two things, beside or above each other. */
export const place: Ask = (d, w) => {
  const [a, b] = d.several(w.concepts, 2) as [Concept, Concept];
  const beside = d.chance(0.5);
  const [near, far] = [side * 0.27, side * 0.73];
  const [x, y] = beside
    ? [
        [near, far],
        [side / 2, side / 2],
      ]
    : [
        [side / 2, side / 2],
        [near, far],
      ];
  const size = () => side * (0.4 + 0.08 * d.number());
  const scene = new Scene(ground(d), d)
    .put(spriteOf(d, a, w), x![0]!, y![0]!, size())
    .put(spriteOf(d, b, w), x![1]!, y![1]!, size());
  const [first, second] = beside ? ["on the left", "on the right"] : ["at the top", "at the bottom"];
  const [where, answer] = d.chance(0.5) ? [first, a] : [second, b];
  if (d.chance(0.35))
    return {
      content: [picture(scene), d.of(["What do you see?", "Which two things are there?"])],
      answer: `${capital(named(a.label))} and ${named(b.label)}.`,
    };
  return {
    content: [picture(scene), d.of([`What is ${where}?`, `What do you see ${where}?`])],
    answer: `${capital(named(answer.label))}.`,
  };
};

/** Two pictures: of the same thing, or not. */
export const same: Ask = (d, w) => {
  const [a, other] = d.several(w.concepts, 2) as [Concept, Concept];
  const b = d.chance(0.5) ? a : other;
  const question = d.of([
    "Are these the same?",
    "Is it the same thing in both pictures?",
    "Do both pictures show the same?",
  ]);
  const answer =
    a === b
      ? `Yes, both show ${named(a.label)}.`
      : `No, the first shows ${named(a.label)} and the second ${named(b.label)}.`;
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
    answer: `The ${ordinals[at]}.`,
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
