// The report of a run as a page: what a reader can tell apart on it.

import { expect, it } from "vitest";
import { reportPage } from "../../src/cli/train-report.ts";
import { readConfig } from "../../src/train/config.ts";
import { config as model } from "../train/small-model.ts";

const files = Array.from({ length: 16 }, (_, i) => `file ${i}`);
const config = readConfig(
  { out: "run", data: { a: "a.jsonl" }, phases: [{ steps: 20, mix: { a: 1 } }], schedule: { warmup: 1, decay: 1 } },
  "c.json",
);
const step = (n: number) => ({
  ...{ type: "step", step: n, phase: 0, loss: 3 + (n % 2), rate: 0.001, norm: 1 },
  ...{ tokens: 100, counted: 90, tiles: 0, load: [], seconds: 0.1 },
});
const heldOut = (n: number) => ({
  ...{ type: "heldOut", step: n, seconds: n },
  losses: Object.fromEntries(files.map((name, i) => [name, { loss: 1 + i + 1 / n, bitsPerByte: 0.5 + i / 10 }])),
});
const steps = Array.from({ length: 20 }, (_, i) => step(i + 1));
const page = reportPage([...steps, heldOut(10), heldOut(20)], config, model);
const figures = page.split("<figure>").slice(1);
const figure = (title: string) => figures.find((html) => html.includes(`<b>${title}</b>`))!;
const matches = (html: string, pattern: RegExp) => [...html.matchAll(pattern)].map(([, found]) => found!);
const legend = (html: string) =>
  [...html.matchAll(/<span style="color:([^"]*)"><i>([^<]*)<\/i>/g)].map(
    ([, colour, name]) => [name!, colour!] as const,
  );

/** L, a and b (Ottosson 2020, a perceptual space) of a colour of the page in one of its modes. */
function oklab(colour: string, variables: ReadonlyMap<string, string>): [number, number, number] {
  const plain = colour.replaceAll(/var\((--\w+)\)/g, (_, name: string) => {
    expect([...variables.keys()]).toContain(name);
    return variables.get(name)!;
  });
  const polar = /^oklch\((\S+) (\S+) (\S+)\)$/.exec(plain);
  if (polar) {
    const [L, C, hue] = polar.slice(1).map(Number) as [number, number, number];
    return [L, C * Math.cos((hue * Math.PI) / 180), C * Math.sin((hue * Math.PI) / 180)];
  }
  const hex = /^#(\w\w)(\w\w)(\w\w)$/.exec(plain.replace(/^#(\w)(\w)(\w)$/, "#$1$1$2$2$3$3"))!;
  const [r, g, b] = hex.slice(1).map((byte) => {
    const x = Number.parseInt(byte, 16) / 255;
    return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
  }) as [number, number, number];
  const l = Math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
  const m = Math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
  const s = Math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
  return [
    0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s,
    1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s,
    0.0259040371 * l + 0.7827717662 * m - 0.808675766 * s,
  ];
}

it.each(["light", "dark"])("16 files that are held out have colours that can be told apart in %s", (mode) => {
  const [light, dark] = matches(page, /:root {([^}]*)}/g) as [string, string];
  const variables = new Map(
    [light, mode === "dark" ? dark : ""].flatMap((css) =>
      [...css.matchAll(/(--\w+): ([^;\s]+)/g)].map(([, name, value]) => [name!, value!] as const),
    ),
  );
  const card = oklab("var(--card)", variables);
  const lines = legend(figure("Loss")).filter(([name]) => name !== "a step"); // grey
  expect(lines.map(([name]) => name)).toEqual(["smoothed", ...files]);
  const colours = lines.map(([, colour]) => oklab(colour, variables));
  for (const [i, one] of colours.entries()) {
    expect(Math.abs(one[0] - card[0])).toBeGreaterThan(0.35); // of lightness, from the paper
    for (const [j, other] of colours.slice(0, i).entries()) {
      const away = Math.hypot(...one.map((x, axis) => x - other[axis]!));
      expect(away, `${lines[i]} and ${lines[j]}`).toBeGreaterThan(0.08); // 0.02 is just noticed
    }
  }
});

it("a file has the same colour in every chart, in the legend and on its curve", () => {
  const [loss, held] = [figure("Loss"), figure("Held out")];
  expect(legend(held).map(([name]) => name)).toEqual(files);
  expect(legend(loss).slice(2)).toEqual(legend(held));
  for (const html of [loss, held])
    expect(matches(html, /<g style="color:([^"]*)"><path class="line/g)).toEqual(
      legend(html).map(([, colour]) => colour),
    );
  expect(page).toMatch(/\.line {[^}]*stroke: currentColor/);
  expect(page).toMatch(/circle { fill: currentColor }/);
});

it("what is measured now and then is drawn where it lies, however high", () => {
  const heights = matches(figure("Loss"), /<circle cx="[^"]*" cy="([^"]*)"/g).map(Number);
  expect(new Set(heights).size).toBe(2 * files.length);
  expect(Math.min(...heights)).toBeGreaterThan(12); // the upper edge
});
