// Short stories out of a grammar: few words, many ways to go. They are where the model learns to stay with its subject.

import type { Draw } from "./draw.ts";
import { article, capital } from "./words.ts";

export interface Cast {
  readonly animals: readonly string[];
  readonly foods: readonly string[];
  readonly things: readonly string[];
  readonly vehicles: readonly string[];
}

const names =
  "Anna Ben Clara David Ella Finn Grace Hugo Ida Jack Kira Leo Mia Noah Olga Paul Rosa Sam Tina Vera Will Zoe".split(
    " ",
  );
const places = [
  "the forest",
  "the garden",
  "the village",
  "the old house",
  "the river",
  "the beach",
  "the mountain",
  "the market",
  "the school",
  "the farm",
  "the park",
  "the lake",
];
const moods = [
  "happy",
  "sad",
  "tired",
  "hungry",
  "brave",
  "curious",
  "lonely",
  "proud",
  "quiet",
  "clever",
  "kind",
  "shy",
];
const sizes = ["little", "big", "old", "young", "small", "strong", "gentle", "funny"];
const colours = ["red", "blue", "green", "yellow", "white", "black", "brown", "golden"];
const weather = [
  "It was a warm day.",
  "It was raining.",
  "The sun was shining.",
  "Snow lay on the ground.",
  "The wind was strong.",
  "It was a quiet evening.",
  "The morning was cold.",
  "The stars were out.",
];

type Way = (d: Draw, c: Cast) => string[];

const say = (d: Draw, who: string, words: string) =>
  d.of([`"${words.replace(/\.$/, ",")}" said ${who}.`, `${capital(who)} said, "${words}"`]);

const ways: readonly Way[] = [
  // Something is lost and found.
  (d, c) => {
    const [who, friend] = d.several(names, 2) as [string, string];
    const [thing, colour, place, other] = [d.of(c.things), d.of(colours), d.of(places), d.of(places)];
    const animal = d.of(c.animals);
    return [
      `${who} had ${article(colour)} ${thing}.`,
      d.of([`${who} liked it more than anything.`, `It was a present from ${friend}.`]),
      `One day the ${thing} was gone.`,
      `${who} was ${d.of(["sad", "worried", "upset"])} and looked in ${place}, but it was not there.`,
      `Then ${who} looked in ${other}.`,
      `There sat ${article(animal)} with the ${colour} ${thing}.`,
      say(d, who, d.of(["That is mine.", "You found it.", "Thank you."])),
      d.of([
        `The ${animal} gave it back, and they became friends.`,
        `The ${animal} smiled and gave the ${thing} to ${who}.`,
      ]),
    ];
  },
  // Two animals share food.
  (d, c) => {
    const [a, b] = d.several(c.animals, 2) as [string, string];
    const [food, place, mood] = [d.of(c.foods), d.of(places), d.of(moods)];
    return [
      `${capital(article(a))} and ${article(b)} lived near ${place}.`,
      d.of(weather),
      `The ${a} was hungry and had nothing to eat.`,
      `The ${b} had ${article(food)}.`,
      say(d, `the ${a}`, `May I have some of your ${food}?`),
      d.chance(0.7)
        ? `The ${b} was kind. It cut the ${food} in two and gave half to the ${a}.`
        : `At first the ${b} said no. Then it saw how hungry the ${a} was, and gave it the whole ${food}.`,
      `After that the ${a} was not hungry any more, and the ${b} was ${mood === "sad" ? "happy" : mood}.`,
      d.of([
        "They ate together every day.",
        "Sharing is better than eating alone.",
        "That is how they became friends.",
      ]),
    ];
  },
  // A journey.
  (d, c) => {
    const who = d.of(names);
    const [vehicle, from, to, food] = [d.of(c.vehicles), d.of(places), d.of(places), d.of(c.foods)];
    const [animal, size] = [d.of(c.animals), d.of(sizes)];
    return [
      `${who} wanted to go from ${from} to ${to}.`,
      `So ${who} took ${article(vehicle)}.`,
      d.of(weather),
      `On the way there was ${article(size)} ${animal}.`,
      say(d, `the ${animal}`, d.of(["Where are you going?", "Can I come with you?", "Is it far?"])),
      say(d, who, `I am going to ${to}, come with me!`),
      `The ${animal} got in, and the ${vehicle} went on.`,
      `When they came to ${to}, they ate ${article(food)} and looked at the sky.`,
    ];
  },
  // Counting.
  (d, c) => {
    const [animal, place] = [d.of(c.animals), d.of(places)];
    const words = ["one", "two", "three", "four", "five", "six", "seven"];
    const [n, more] = [d.whole(1, 4), d.whole(1, 3)];
    const many = (count: number) => `${words[count - 1]} ${animal}${count > 1 ? "s" : ""}`;
    return [
      `There ${n > 1 ? "were" : "was"} ${many(n)} in ${place}.`,
      `Then ${many(more)} came.`,
      `Now there were ${many(n + more)}.`,
      d.of([`They played until it was dark.`, `They slept under a tree.`, `They were ${d.of(moods)}.`]),
    ];
  },
  // Something is made or mended.
  (d, c) => {
    const [who, friend] = d.several(names, 2) as [string, string];
    const [thing, animal, colour] = [d.of(c.things), d.of(c.animals), d.of(colours)];
    return [
      `${who} wanted to make ${article(thing)} for ${friend}.`,
      `${who} worked the whole day.`,
      d.of([`At noon it broke.`, `It was hard work.`, `It did not look right.`]),
      `${capital(article(animal))} came by and helped.`,
      `In the evening the ${thing} was ready. They painted it ${colour}.`,
      `${friend} was very ${d.of(["happy", "proud", "surprised"])}.`,
      say(d, friend, `This is the best ${thing} that I ever had.`),
    ];
  },
  // A fear is lost.
  (d, c) => {
    const [small, large] = d.several(c.animals, 2) as [string, string];
    const [name, place] = [d.of(names), d.of(places)];
    return [
      `${name} was ${article(d.of(["little", "young", "small"]))} ${small}.`,
      `${name} was afraid of ${d.of(["the dark", "the water", "thunder", "high places", `the ${large}`])}.`,
      `One night ${name} had to go to ${place} alone.`,
      `There was a noise. It was ${article(large)}.`,
      say(d, `the ${large}`, d.of(["Do not be afraid.", "I am lost.", "I cannot sleep."])),
      `${name} sat down beside the ${large}, and they talked until the morning.`,
      `Since then ${name} is not afraid any more.`,
    ];
  },
];

/** A story as one text. */
export function story(d: Draw, cast: Cast): string {
  const opening = d.chance(0.35)
    ? `${d.of(["Once upon a time there was a story to tell.", "Listen.", "Here is a story.", "This happened long ago."])} `
    : "";
  return opening + d.of(ways)(d, cast).join(" ");
}
