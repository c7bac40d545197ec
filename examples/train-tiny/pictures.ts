// Pictures with names: emoji of several designers, drawn once each with its transparency, then laid on grounds of many
// colours, sizes and places. Which designer is on which side of the split is written here.

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import sharp from "sharp";
import { type Draw, hash } from "./draw.ts";
import type { Packages } from "./packages.ts";

/** Pixels along a tile. */
export const side = 48;
const drawn = 96; // pixels along a sprite, shrunk into each scene

export type Designer =
  | "noto"
  | "fluent-flat"
  | "fluent"
  | "fluent-3d"
  | "emojione"
  | "fxemoji"
  | "twemoji"
  | "openmoji"
  | "tuxpaint";
/** Never learnt from: Twemoji is test A, OpenMoji test B; Tux Paint's photographs are test C. */
export const testDesigners: readonly Designer[] = ["twemoji", "openmoji"];
/** Held out while recipes are compared, learnt from in the run that ships. */
export const tuningDesigner: Designer = "emojione";
export const trainDesigners: readonly Designer[] = [
  "noto",
  "fluent-flat",
  "fluent",
  "fluent-3d",
  "emojione",
  "fxemoji",
];

export type Group = "animal" | "plant" | "food" | "drink" | "vehicle" | "sport" | "clothing" | "instrument" | "object";

export interface Concept {
  readonly label: string;
  readonly emoji: string;
  readonly hexcode: string;
  readonly group: Group;
  /** Never shown in training: only its group can be right. */
  readonly heldOut: boolean;
  readonly sprites: ReadonlyMap<Designer, Sprite>;
}

/** Straight RGBA, `side` by `side`. */
export interface Sprite {
  readonly side: number;
  readonly rgba: Uint8Array;
}

const groupsOf: Readonly<Record<string, Group>> = {
  ...{
    "animal-mammal": "animal",
    "animal-bird": "animal",
    "animal-amphibian": "animal",
    "animal-reptile": "animal",
    "animal-marine": "animal",
    "animal-bug": "animal",
  },
  ...{
    "plant-flower": "plant",
    "plant-other": "plant",
    "food-fruit": "food",
    "food-vegetable": "food",
    "food-prepared": "food",
    "food-asian": "food",
    "food-sweet": "food",
    drink: "drink",
  },
  ...{
    "transport-ground": "vehicle",
    "transport-water": "vehicle",
    "transport-air": "vehicle",
    sport: "sport",
    clothing: "clothing",
    "musical-instrument": "instrument",
  },
  ...{
    tool: "object",
    household: "object",
    "light-video": "object",
    office: "object",
    writing: "object",
    computer: "object",
    phone: "object",
    music: "object",
    science: "object",
    medical: "object",
    lock: "object",
    dishware: "object",
    "book-paper": "object",
    "arts-crafts": "object",
    game: "object",
    "award-medal": "object",
  },
};

// Views, weather of the day, things without a shape of their own, and what a small picture cannot show.
const unclear =
  /^(person|man|woman|women|men|people)|:|\d|face$|stop|sign|light$|station|arrival|departure|pump|roadway|track|symbol|button|cards?$|ticket|medal|pin|clip|ruler|folder|calendar|chart|page|scroll|document|notebook|newspaper|ledger|tabs|clipboard|opener|unknown|wheel|divider|seat|fountain|dodo|microbe|pool 8|paw|nest|feather|footprints|bone|coral|wing|droplet|tag$|bookmark|brush|locked|unlocked|key$|cinema|projector|film|camera with|rewind|control knobs|level slider|keyboard|optical|floppy|card index|triangular|straight|link|chains|hook|magnet|alembic|petri|dna|bandage|stethoscope|x-ray|crutch|razor|lotion|sponge|identification|placard|moai|urn|headstone|coffin|cigarette|pistol|bomb|dagger|swords|bow and|shield|syringe|pill|drop of/;

/** Of whose kind its place among the emoji says nothing true: a fuel pump is no vehicle. */
const unkind =
  /^(paw prints|feather|wing|microbe|coral|empty nest|nest with eggs|station|motorway|oil drum|fuel pump|wheel|police car light|(horizontal|vertical) traffic light|stop sign|ring buoy|seat|folding hand fan|shopping bags|hair pick|drop of blood)$/;

/**
 * The things that the model learns to name, each drawn by at least five of the designers that may be learnt from, and
 * `others` of the same kinds, by at least one, whose names it does not learn: too unclear, in three words, drawn by too few, or the
 * face of one that it does. What is held out shares no word with them.
 */
export async function readConcepts(packages: Packages): Promise<{ concepts: Concept[]; others: Concept[] }> {
  const subgroups = read(join(packages.npm("emojibase-data"), "meta/groups.json")) as {
    subgroups: Record<string, string>;
  };
  const emoji = read(join(packages.npm("emojibase-data"), "en/data.json")) as {
    label: string;
    emoji: string;
    hexcode: string;
    subgroup?: number;
  }[];
  const sets = iconSets(packages);
  const [found, others]: [Concept[], Concept[]] = [[], []];
  const labels = new Set<string>();
  // Whole animals before faces, so that "dog" is the dog and "dog face" adds nothing.
  const sorted = emoji
    .map((entry) => ({ ...entry, isFace: / face$/.test(entry.label) }))
    .sort((a, b) => Number(a.isFace) - Number(b.isFace));
  for (const { label: name, emoji: character, hexcode, subgroup, isFace } of sorted) {
    const group = groupsOf[subgroups.subgroups[String(subgroup)] ?? ""];
    const label = (isFace ? name.replace(/ face$/, "") : name).toLowerCase();
    if (!group) continue;
    const sprites = new Map<Designer, Sprite>();
    for (const [designer, draw] of sets) {
      const sprite = await draw(slug(name), hexcode);
      if (sprite) sprites.set(designer, sprite);
    }
    const thing = { label, emoji: character, hexcode, group, sprites };
    const isDrawnBy = trainDesigners.filter((designer) => sprites.has(designer)).length;
    const isClear = !labels.has(label) && !unclear.test(label) && /^[a-z]+( [a-z]+)?$/.test(label);
    if (isClear && isDrawnBy >= 5 && sprites.has("twemoji")) {
      labels.add(label);
      found.push({ ...thing, heldOut: hash(`concept ${label}`) % 12 === 0 });
    } else if (isDrawnBy > 0 && !unkind.test(label)) others.push({ ...thing, heldOut: false });
  }
  const heldOut = new Set(found.filter(({ heldOut }) => heldOut).flatMap(({ label }) => wordsOf(label)));
  return {
    concepts: found.sort((a, b) => (a.label < b.label ? -1 : 1)),
    others: others.filter(({ label }) => !wordsOf(label).some((word) => heldOut.has(word))),
  };
}

const wordsOf = (label: string) =>
  label
    .toLowerCase()
    .split(/[^a-z]+/)
    .filter(Boolean);

const read = (path: string): unknown => JSON.parse(readFileSync(path, "utf8"));

const slug = (label: string) =>
  label
    .toLowerCase()
    .normalize("NFD")
    .replaceAll(/[\u0300-\u036f’'“”.()!:,]/g, "")
    .replaceAll(/[^a-z0-9]+/g, "-")
    .replaceAll(/^-|-$/g, "");

type DrawSprite = (slug: string, hexcode: string) => Promise<Sprite | undefined>;

function iconSets(packages: Packages): [Designer, DrawSprite][] {
  const iconify = (name: Parameters<Packages["npm"]>[0], key = (slug: string) => slug): DrawSprite => {
    const set = read(join(packages.npm(name), "icons.json")) as IconSet;
    return async (slug) => {
      const icon = set.icons[key(slug)];
      if (!icon) return undefined;
      const [left, top] = [icon.left ?? set.left ?? 0, icon.top ?? set.top ?? 0];
      const [width, height] = [icon.width ?? set.width ?? 16, icon.height ?? set.height ?? 16];
      const svg = `<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="${left} ${top} ${width} ${height}" width="${drawn}" height="${drawn}">${icon.body}</svg>`;
      return raster(Buffer.from(svg));
    };
  };
  const assets = join(packages.npm("@lobehub/fluent-emoji-3d"), "assets");
  return [
    ["noto", iconify("@iconify-json/noto")],
    ["fluent-flat", iconify("@iconify-json/fluent-emoji-flat")],
    ["fluent", iconify("@iconify-json/fluent-emoji")],
    [
      "fluent-3d",
      async (_, hexcode) => {
        const path = join(assets, `${hexcode.toLowerCase()}.webp`);
        return existsSync(path) ? raster(readFileSync(path)) : undefined;
      },
    ],
    ["emojione", iconify("@iconify-json/emojione")],
    ["fxemoji", iconify("@iconify-json/fxemoji", (slug) => slug.replaceAll("-", ""))],
    ["twemoji", iconify("@iconify-json/twemoji")],
    ["openmoji", iconify("@iconify-json/openmoji")],
  ];
}

interface Icon {
  readonly body: string;
  readonly left?: number;
  readonly top?: number;
  readonly width?: number;
  readonly height?: number;
}

interface IconSet extends Omit<Icon, "body"> {
  readonly icons: Readonly<Record<string, Icon>>;
}

async function raster(file: Buffer): Promise<Sprite> {
  const { data } = await sharp(file)
    .resize(drawn, drawn, { fit: "contain", background: { r: 0, g: 0, b: 0, alpha: 0 } })
    .ensureAlpha()
    .raw()
    .toBuffer({ resolveWithObject: true });
  return { side: drawn, rgba: new Uint8Array(data) };
}

export interface Flag {
  readonly code: string;
  readonly name: string;
  readonly capital: string;
  readonly continent: string;
  readonly wide: Sprite;
  readonly test: Sprite | undefined;
}

/** Flags: 4 × 3 to learn, Twemoji's as the test. */
export async function readFlags(packages: Packages): Promise<Flag[]> {
  const folder = packages.npm("flag-icons");
  const countries = read(join(folder, "country.json")) as {
    code: string;
    name: string;
    capital?: string;
    continent?: string;
    iso: boolean;
    flag_4x3: string;
  }[];
  const twemoji = iconSets(packages).find(([designer]) => designer === "twemoji")![1];
  const found: Flag[] = [];
  for (const { code, name, capital, continent, iso, flag_4x3 } of countries) {
    if (!iso || !capital || !continent || code.length !== 2) continue;
    found.push({
      code,
      name,
      capital,
      continent,
      wide: await raster(readFileSync(join(folder, flag_4x3))),
      test: await twemoji(`flag-${slug(name)}`, ""),
    });
  }
  return found;
}

/** Cut-out photographs of things that drawings taught, from Tux Paint's stamps: each a concept of its own, by its caption. */
export async function readPhotographs(packages: Packages, learnt: readonly Concept[]): Promise<Concept[]> {
  const root = join(packages.debian("tuxpaint-stamps-default"), "usr/share/tuxpaint/stamps");
  const found: Concept[] = [];
  for (const file of (readdirSync(root, { recursive: true }) as string[]).sort()) {
    // Cartoons are drawings, and mirrored stamps would be counted twice.
    if (!file.endsWith(".png") || /cartoon|toys|_mirror|_flip/.test(file)) continue;
    const captions = join(root, dirname(file), `${basename(file, ".png")}.txt`);
    if (!existsSync(captions)) continue;
    const caption = readFileSync(captions, "utf8")
      .split(/[\n.!?:;,(—–]/, 1)[0]!
      .toLowerCase()
      .trim();
    const said = caption.replace(/^(an?|the|some) /, "");
    if (said.split(" ").length > 3) continue; // "a chick inside an egg"
    const named = learnt.filter(({ label }) => said === label || said.endsWith(` ${label}`));
    const concept = named.sort((a, b) => b.label.length - a.label.length)[0];
    if (!concept) continue;
    const sprite = await raster(readFileSync(join(root, file)));
    found.push({ ...concept, sprites: new Map([["tuxpaint", sprite]]) });
  }
  return found;
}

// ---- scenes ----

export interface Colour {
  readonly name: string;
  readonly rgb: readonly [number, number, number];
}

export const colours: readonly Colour[] = [
  { name: "white", rgb: [250, 250, 248] },
  { name: "black", rgb: [22, 22, 26] },
  { name: "grey", rgb: [140, 142, 146] },
  { name: "red", rgb: [214, 40, 45] },
  { name: "orange", rgb: [245, 140, 40] },
  { name: "yellow", rgb: [250, 215, 70] },
  { name: "green", rgb: [50, 160, 80] },
  { name: "blue", rgb: [45, 105, 215] },
  { name: "purple", rgb: [135, 70, 180] },
  { name: "pink", rgb: [245, 160, 190] },
];

/** A tile in the making: bytes `[3, S, S]`. */
export class Scene {
  readonly pixels = new Uint8Array(3 * side ** 2);

  /** The ground in a colour, a little off it. */
  constructor({ rgb }: Colour, draw?: Draw) {
    for (const [c, level] of rgb.entries()) {
      const value = Math.max(0, Math.min(255, level + (draw ? draw.whole(-9, 9) : 0)));
      this.pixels.fill(value, c * side ** 2, (c + 1) * side ** 2);
    }
  }

  /** A sprite of `size` pixels, its middle at (x, y), turned by `angle` (radians), as the mean of 2 × 2 samples a pixel. */
  put({ side: S, rgba }: Sprite, x: number, y: number, size: number, { angle = 0, mirror = false } = {}): this {
    const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
    const reach = (size / 2) * Math.SQRT2;
    const range = (middle: number) =>
      [Math.max(0, Math.floor(middle - reach)), Math.min(side - 1, Math.ceil(middle + reach))] as const;
    const [[x0, x1], [y0, y1]] = [range(x), range(y)];
    for (let py = y0; py <= y1; py++)
      for (let px = x0; px <= x1; px++) {
        let [r, g, b, alpha] = [0, 0, 0, 0];
        for (let sample = 0; sample < 4; sample++) {
          const [dx, dy] = [px + (sample & 1 ? 0.75 : 0.25) - x, py + (sample & 2 ? 0.75 : 0.25) - y];
          const u = ((dx * cos + dy * sin) / size) * (mirror ? -1 : 1) + 0.5;
          const v = (-dx * sin + dy * cos) / size + 0.5;
          if (u < 0 || u >= 1 || v < 0 || v >= 1) continue;
          const at = 4 * (Math.floor(v * S) * S + Math.floor(u * S));
          const a = rgba[at + 3]! / 255;
          r += a * rgba[at]!;
          g += a * rgba[at + 1]!;
          b += a * rgba[at + 2]!;
          alpha += a;
        }
        if (alpha === 0) continue;
        for (const [c, sum] of [r, g, b].entries()) {
          const place = c * side ** 2 + py * side + px;
          this.pixels[place] = Math.round(sum / 4 + (1 - alpha / 4) * this.pixels[place]!);
        }
      }
    return this;
  }
}

const shapes = {
  circle: (u: number, v: number) => u * u + v * v < 0.2,
  square: (u: number, v: number) => Math.abs(u) < 0.38 && Math.abs(v) < 0.38,
  triangle: (u: number, v: number) => v < 0.38 && v > 2 * Math.abs(u) - 0.42,
  ring: (u: number, v: number) => u * u + v * v < 0.22 && u * u + v * v > 0.09,
  cross: (u: number, v: number) =>
    Math.min(Math.abs(u), Math.abs(v)) < 0.12 && Math.max(Math.abs(u), Math.abs(v)) < 0.42,
} as const;

export const shapeNames = Object.keys(shapes) as (keyof typeof shapes)[];

/** A plain shape in a colour. */
export function shapeSprite(name: keyof typeof shapes, { rgb }: Colour): Sprite {
  const rgba = new Uint8Array(4 * drawn ** 2);
  for (let i = 0; i < drawn ** 2; i++)
    if (shapes[name](((i % drawn) + 0.5) / drawn - 0.5, (Math.floor(i / drawn) + 0.5) / drawn - 0.5))
      rgba.set([...rgb, 255], 4 * i);
  return { side: drawn, rgba };
}
