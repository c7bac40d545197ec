// The recipe of the model that ships: its configs are configs, and what its talks about pictures answer is true.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { Draw } from "../../examples/train-tiny/draw.ts";
import {
  isItThen,
  talkOfMany,
  talkOfOne,
  talkOfPictures,
  talkOfPlaces,
  type World,
} from "../../examples/train-tiny/picture-chats.ts";
import { type Concept, colours, type Group, shapeNames, shapeSprite } from "../../examples/train-tiny/pictures.ts";
import { readConfig } from "../../src/train/config.ts";

const folder = join(import.meta.dirname, "../../examples/train-tiny");

it.each(["text.json", "config.json", "last.json"])("%s is a config whose files build.ts makes", (name) => {
  const config = readConfig(JSON.parse(readFileSync(join(folder, name), "utf8")), name);
  const recipe = readFileSync(join(folder, "build.ts"), "utf8");
  expect(config.phases.length).toBeGreaterThan(0);
  for (const [source, file] of Object.entries(config.data)) {
    expect(file.endsWith(`data/${source}.jsonl`)).toBe(true);
    expect(recipe).toContain(`"${source}"`);
  }
});

describe("talks", () => {
  const kinds: readonly (readonly [label: string, group: Group])[] = [
    ...([
      ["eagle", "animal"],
      ["bird", "animal"],
      ["dog", "animal"],
      ["lemon", "food"],
    ] as const),
    ...([
      ["taxi", "vehicle"],
      ["automobile", "vehicle"],
      ["hammer", "object"],
      ["ship", "vehicle"],
    ] as const),
  ];
  const concepts = kinds.map(([label, group], i): Concept => {
    const sprite = shapeSprite(shapeNames[i % shapeNames.length]!, colours[1 + (i % (colours.length - 1))]!);
    return { label, group, emoji: label, hexcode: label, heldOut: false, sprites: new Map([["noto", sprite]]) };
  });
  const world: World = { concepts, designers: ["noto"], languages: new Map(), flags: [] };
  const isLabel = (text: string) => concepts.some(({ label }) => label === text);
  const bare = (text: string) => text.toLowerCase().replace(/^an? /, "");

  /** What an answer says is shown: "A dog on the left and a lion on the right: …" */
  const seenIn = (answer: string) =>
    bare(answer.split(":")[0]!)
      .replace(/\.$/, "")
      .split(/, | and /)
      .map((item) => bare(item).replace(/ (on|at) the .*| (first|second|third|fourth)$/, ""));

  const talks = Object.entries({ talkOfOne, talkOfPlaces, talkOfPictures, talkOfMany, isItThen });
  it.each(talks)("%s answers truly", (name, talk) => {
    const d = new Draw(name);
    const verdicts = new Map<string, number>();
    for (let n = 0; n < 400; n++) {
      const { content, answer, further = [] } = talk(d, world);
      const turns = [{ question: content.at(-1) as string, answer }, ...further];
      let shown: string[] | undefined;
      for (const { question, answer } of turns) {
        const [said, verdict] = answer.replace(/\.$/, "").split(": ");
        if (!verdict) continue;
        const seen = seenIn(said!);
        expect(seen.every(isLabel), answer).toBe(true);
        shown ??= seen;
        expect(seen, "all turns are of the same pictures").toEqual(shown);
        verdicts.set(verdict, (verdicts.get(verdict) ?? 0) + 1);
        const asked = concepts.find(({ label }) => new RegExp(`\\b${label}\\b`).test(question))?.label;
        if (verdict === "none") expect(seen).not.toContain(asked);
        else if (verdict === "yes" || verdict === "no") {
          const expected = asked ? seen.includes(asked) : seen.every((one) => one === seen[0]);
          expect(verdict, `${question} ${answer}`).toBe(expected ? "yes" : "no");
          if (asked === "bird" && verdict === "no") expect(seen).not.toContain("eagle");
          if (asked === "automobile" && verdict === "no") expect(seen).not.toContain("taxi");
        } else expect(said!.toLowerCase().split(/, | and /), answer).toContain(verdict);
        if (verdict !== "yes" && verdict !== "no" && verdict !== "none") expect(bare(verdict)).toContain(asked);
      }
    }
    expect(verdicts.get("yes")).toBeGreaterThan(10);
    expect(verdicts.get("no")).toBeGreaterThan(10);
    if (name === "talkOfPlaces" || name === "talkOfPictures") expect(verdicts.get("none")).toBeGreaterThan(3);
  });
});
