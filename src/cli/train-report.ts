// The report of a run: one page without anything from elsewhere. Loss, rate, load of the experts, and what the model said
// along the way. Charts are SVG; colours follow the reader's light or dark.

import { countParameters, type Llama4Config } from "../model/config.ts";
import type { TrainConfig } from "../train/config.ts";
import type { HeldOutLoss, Sample, StepReport } from "../train/trainer.ts";
import { duration } from "./train-meter.ts";

type Entry = Readonly<Record<string, unknown>>;
type Step = StepReport & { readonly seconds: number };
type HeldOut = { readonly step: number; readonly losses: Readonly<Record<string, HeldOutLoss>> };
type Samples = { readonly step: number; readonly samples: readonly Sample[] };

/** Pixels of tiles `[3, S, S]`, by number. */
export interface Pictures {
  readonly side: number;
  readonly tiles: ReadonlyMap<number, Uint8Array>;
}

interface Point {
  readonly x: number;
  readonly y: number;
}

interface Line {
  readonly name: string;
  readonly points: readonly Point[];
  readonly kind: "faint" | "main" | "dots";
  /** Its number among the page's colours, from 1; 0 is grey. */
  readonly colour: number;
}

/** The page as HTML. */
export function reportPage(
  entries: readonly Entry[],
  config: TrainConfig,
  model: Llama4Config,
  pictures?: Pictures,
): string {
  const of = <T>(type: string) => entries.filter((entry) => entry["type"] === type) as unknown as T[]; // the log is ours
  const [steps, held, samples] = [of<Step>("step"), of<HeldOut>("heldOut"), of<Samples>("samples")];
  const last = steps.at(-1);
  const seconds = steps.reduce((sum, step) => sum + step.seconds, 0);
  const tokens = steps.reduce((sum, step) => sum + step.tokens, 0);
  const { total, active } = countParameters(model);
  const loss = steps.map(({ step, loss }) => ({ x: step, y: loss }));
  const facts: [string, string][] = [
    ["parameters", `${short(total)} <small>${short(active)} active</small>`],
    [
      "steps",
      `${last?.step.toLocaleString("en") ?? 0} <small>of ${config.schedule.steps.toLocaleString("en")}</small>`,
    ],
    ["tokens seen", short(tokens)],
    ["time", duration(seconds)],
    ["tokens a second", short(tokens / Math.max(seconds, 1e-9))],
    ["loss", smoothed(loss).at(-1)?.y.toFixed(3) ?? "–"],
  ];
  const names = [...new Set(held.flatMap(({ losses }) => Object.keys(losses)))];
  const heldLines = (value: (loss: HeldOutLoss) => number) =>
    names.map((name, i): Line => {
      const points = held.flatMap(({ step, losses }) => (losses[name] ? [{ x: step, y: value(losses[name]) }] : []));
      return { name, points, kind: "dots", colour: i + 2 }; // of a file the same in every chart; 1 is the run's own
    });
  const bands = phaseBands(config);
  const lossLines: Line[] = [
    { name: "a step", points: loss, kind: "faint", colour: 0 },
    { name: "smoothed", points: smoothed(loss), kind: "main", colour: 1 },
    ...heldLines(({ loss }) => loss),
  ];
  const taught = steps.flatMap(({ step, taught }) => (taught ? [{ x: step, ...taught }] : []));
  const teacherLines: Line[] = [
    {
      name: "divergence",
      points: smoothed(taught.map(({ x, divergence }) => ({ x, y: divergence }))),
      kind: "main",
      colour: 1,
    },
    { name: "share of the loss", points: taught.map(({ x, share }) => ({ x, y: share })), kind: "main", colour: 2 },
  ];
  const ofSteps = (value: (step: Step) => number) => steps.map((step): Point => ({ x: step.step, y: value(step) }));
  const rate = ofSteps(({ rate }) => rate);
  const norm = smoothed(ofSteps(({ norm }) => norm));
  const speed = smoothed(ofSteps(({ tokens, seconds }) => tokens / seconds));
  const curve = (title: string, unit: string, points: readonly Point[]) =>
    chart(title, unit, [{ name: title, points, kind: "main", colour: 1 }], { bands, zero: true });
  const isCrowded = names.length > 6; // its legend alone would be as high as the charts beside it
  const heldOut = chart(
    "Held out",
    "bits a byte of text that was never learnt from",
    heldLines(({ bitsPerByte }) => bitsPerByte),
    { bands, tall: isCrowded },
  );
  return page(`
<header>
  <p class="eyebrow">llama4 ${taught.length > 0 ? "distil" : "train"}</p>
  <h1>${escaped(config.out)}</h1>
  <dl>${facts.map(([name, value]) => `<div><dt>${name}</dt><dd>${value}</dd></div>`).join("")}</dl>
</header>
${chart("Loss", "nats for each token that had to be predicted", lossLines, { bands, tall: true })}
${isCrowded ? heldOut : ""}
<div class="pair">
${isCrowded ? "" : heldOut}
${curve("Learning rate", "", rate)}
${curve("Gradient", "norm before clipping", norm)}
${chart("Teacher", "nats a token from what it says to what the model says", teacherLines, { bands, zero: true })}
${curve("Speed", "tokens a second", speed)}
</div>
${loadMap(steps)}
${gallery(samples, pictures)}
<footer>${escaped(shape(model))}</footer>`);
}

// ---- charts ----

const most = 600; // points of a line

/** An exponential average, as slow as a fiftieth of the run. */
function smoothed(points: readonly Point[]): Point[] {
  const keep = 1 - 1 / Math.max(1, Math.min(100, points.length / 50));
  let mean = points[0]?.y ?? 0;
  return points.map(({ x, y }) => {
    mean = keep * mean + (1 - keep) * y;
    return { x, y: mean };
  });
}

function thinned(points: readonly Point[]): readonly Point[] {
  if (points.length <= most) return points;
  return Array.from({ length: most }, (_, i) => points[Math.round((i * (points.length - 1)) / (most - 1))]!);
}

interface Band {
  readonly from: number;
  readonly to: number;
  readonly name: string;
}

function phaseBands({ phases }: TrainConfig): Band[] {
  let from = 0;
  return phases.map(({ steps, loss, shares }, i) => {
    const band = { from, to: from + steps, name: `${i + 1}: ${Object.keys(shares).join(", ")} (${loss})` };
    from += steps;
    return band;
  });
}

const [wide, narrow, left, right, top, bottom] = [720, 420, 52, 14, 12, 28];

function chart(
  title: string,
  unit: string,
  lines: readonly Line[],
  { bands, tall = false, zero = false }: { bands: readonly Band[]; tall?: boolean; zero?: boolean },
): string {
  const drawn = lines.map((line) => ({ ...line, points: thinned(line.points.filter(({ y }) => Number.isFinite(y))) }));
  const all = drawn.flatMap(({ points }) => points);
  if (all.length === 0) return "";
  const [W, H] = tall ? [wide, 330] : [narrow, 190];
  const xMost = Math.max(1, ...all.map(({ x }) => x));
  // A few wild steps at the beginning must not flatten the rest; what was measured now and then is in full.
  const sorted = all.map(({ y }) => y).sort((a, b) => a - b);
  const measured = drawn.flatMap(({ kind, points }) => (kind === "dots" ? points.map(({ y }) => y) : []));
  const high = Math.max(sorted[Math.floor(0.995 * (sorted.length - 1))]!, ...measured) * 1.02;
  const low = zero ? 0 : sorted[0]! - 0.03 * (high - sorted[0]!);
  const ticks = niceTicks(low, high);
  const x = (value: number) => left + ((W - left - right) * value) / xMost;
  const y = (value: number) => top + (H - top - bottom) * (1 - (Math.min(value, high) - low) / (high - low || 1));
  const grid = ticks.map(
    (tick) =>
      `<path class="grid" d="M${left} ${y(tick).toFixed(1)}H${W - right}"/><text x="${left - 8}" y="${(y(tick) + 4).toFixed(1)}" text-anchor="end">${label(tick)}</text>`,
  );
  const steps = niceTicks(0, xMost).filter((tick) => tick > 0);
  const axis = steps.map(
    (tick) => `<text x="${x(tick).toFixed(1)}" y="${H - 8}" text-anchor="middle">${short(tick)}</text>`,
  );
  const shades = bands
    .filter(({ from }) => from < xMost)
    .map(
      ({ from, to, name }, i) =>
        `<rect class="band${i % 2}" x="${x(from).toFixed(1)}" y="${top}" width="${(x(Math.min(to, xMost)) - x(from)).toFixed(1)}" height="${H - top - bottom}"><title>${escaped(name)}</title></rect>`,
    );
  const marks = drawn.map(({ points, kind, name, colour }) => {
    const path = points.map((p, i) => `${i === 0 ? "M" : "L"}${x(p.x).toFixed(1)} ${y(p.y).toFixed(1)}`).join("");
    const dots =
      kind === "dots"
        ? points
            .map(
              (p) =>
                `<circle cx="${x(p.x).toFixed(1)}" cy="${y(p.y).toFixed(1)}" r="3"><title>${escaped(name)} at step ${p.x}: ${label(p.y)}</title></circle>`,
            )
            .join("")
        : "";
    const last = points.at(-1);
    return {
      legend: `<span style="color:${colourOf(colour)}"><i>${escaped(name)}</i><b>${last ? label(last.y) : ""}</b></span>`,
      svg: `<g style="color:${colourOf(colour)}"><path class="line ${kind}" d="${path}"/>${dots}</g>`,
    };
  });
  const legend = marks.length > 1 ? `<p class="legend">${marks.map(({ legend }) => legend).join("")}</p>` : "";
  const numbers = drawn.map(({ points }) => points.map((p) => [p.x, Number(p.y.toPrecision(4))]));
  const hover = JSON.stringify({ most: xMost, low, high, lines: numbers });
  return `<figure><figcaption><output></output><b>${title}</b> ${unit}</figcaption>${legend}
<svg${tall ? ' class="wide"' : ""} viewBox="0 0 ${W} ${H}" role="img" aria-label="${title}" data-chart="${escaped(hover)}">${shades.join("")}${grid.join("")}${axis.join("")}${marks.map(({ svg }) => svg).join("")}<path class="cursor" d="M0 ${top}V${H - bottom}" visibility="hidden"/></svg></figure>`;
}

/**
 * Four that were picked, then as many as are needed: hues that are the golden angle apart, in three lightnesses by turns,
 * so that hues which come to lie side by side differ in it.
 */
function colourOf(n: number): string {
  if (n === 0) return "var(--soft)";
  return n <= 4 ? `var(--c${n})` : `oklch(var(--l${n % 3}) .13 ${((22 + 137.508 * n) % 360).toFixed(0)})`;
}

function niceTicks(low: number, high: number): number[] {
  const rough = (high - low) / 5 || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((candidate) => candidate >= rough)!;
  const ticks: number[] = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + 1e-12; tick += step)
    ticks.push(Number(tick.toPrecision(12)));
  return ticks;
}

// ---- experts ----

/** A row for each expert, layer by layer; time from left to right; a share that is even is pale, red a crowd, blue a void. */
function loadMap(steps: readonly Step[]): string {
  const seen = steps.filter(({ load }) => load.length > 0);
  if (seen.length === 0) return "";
  const layers = seen[0]!.load.length;
  const experts = seen[0]!.load[0]!.length;
  const columns = Math.min(120, seen.length);
  const [cell, gap] = [8, 10];
  const H = layers * (experts * cell + gap) + bottom;
  const width = (wide - left - right) / columns;
  const cells: string[] = [];
  for (let layer = 0; layer < layers; layer++) {
    const y = layer * (experts * cell + gap);
    cells.push(`<text x="${left - 8}" y="${y + (experts * cell) / 2 + 4}" text-anchor="end">layer ${layer + 1}</text>`);
    for (let column = 0; column < columns; column++) {
      const run = seen.slice(
        Math.floor((column * seen.length) / columns),
        Math.floor(((column + 1) * seen.length) / columns),
      );
      for (let e = 0; e < experts; e++) {
        const share = run.reduce((sum, { load }) => sum + load[layer]![e]!, 0) / run.length;
        const tilt = Math.max(-1, Math.min(1, Math.log2(Math.max(share, 1e-3) * experts) / 2)); // ×4 or ÷4 is full colour
        cells.push(
          `<rect x="${(left + column * width).toFixed(1)}" y="${y + e * cell}" width="${(width + 0.3).toFixed(1)}" height="${cell}" fill="${tilt > 0 ? "var(--crowd)" : "var(--void)"}" fill-opacity="${(0.08 + 0.92 * Math.abs(tilt)).toFixed(2)}"><title>layer ${layer + 1}, expert ${e}, step ${run[0]!.step}: ${(100 * share).toFixed(1)} %</title></rect>`,
        );
      }
    }
  }
  const end = seen.slice(-Math.ceil(seen.length / 20)).flatMap(({ load }) => load.flat());
  const said = `lately from ${(100 * Math.min(...end)).toFixed(1)} to ${(100 * Math.max(...end)).toFixed(1)} % of a layer's tokens; even would be ${(100 / experts).toFixed(1)} %`;
  return `<figure><figcaption><b>Experts</b> who gets the tokens: pale is even, <i class="crowd">red</i> a crowd, <i class="void">blue</i> a void; ${said}</figcaption>
<svg class="wide" viewBox="0 0 ${wide} ${H}" role="img" aria-label="Load of the experts">${cells.join("")}</svg></figure>`;
}

// ---- samples ----

function gallery(looks: readonly Samples[], pictures: Pictures | undefined): string {
  const now = looks.at(-1);
  if (!now) return "";
  const cards = now.samples.map(({ prompt, expected, tiles }, i) => {
    const said = looks.flatMap(({ step, samples }) => (samples[i] ? [{ step, text: samples[i].text }] : []));
    const changes = said.filter(({ text }, n) => n === 0 || text !== said[n - 1]!.text);
    const images = pictures ? tiles.map((tile) => picture(pictures, tile)).join("") : "";
    const history = changes
      .slice(0, -1)
      .slice(-6)
      .map(({ step, text }) => `<li><small>${short(step)}</small> ${escaped(text)}</li>`)
      .join("");
    return `<article>${images && `<div class="images">${images}</div>`}<p class="prompt">${escaped(plain(prompt))}</p>
<p class="said">${escaped(said.at(-1)!.text) || "…"}</p>${expected ? `<p class="expected">${escaped(expected)}</p>` : ""}${history && `<details><summary>before</summary><ol>${history}</ol></details>`}</article>`;
  });
  return `<section><h2>What it says</h2><p class="hint">after ${now.step.toLocaleString("en")} steps; the likeliest tokens; what the document says is in grey</p><div class="cards">${cards.join("")}</div></section>`;
}

/** A prompt as a person would write it: without headers and patches. */
function plain(prompt: string): string {
  return prompt
    .replaceAll(/<\|header_start\|>(\w+)<\|header_end\|>/g, (_, role: string) => (role === "user" ? "" : "\n"))
    .replaceAll(/<\|[^|]*\|>/g, "")
    .trim();
}

/** A tile as a bitmap in the page itself. */
function picture({ side, tiles }: Pictures, tile: number): string {
  const pixels = tiles.get(tile);
  if (!pixels) return "";
  const row = Math.ceil((3 * side) / 4) * 4;
  const bytes = new Uint8Array(54 + row * side);
  const view = new DataView(bytes.buffer);
  bytes.set([0x42, 0x4d]); // "BM": header of 14 bytes, then one of 40; rows from the bottom up, blue first
  view.setUint32(2, bytes.length, true);
  view.setUint32(10, 54, true);
  view.setUint32(14, 40, true);
  view.setInt32(18, side, true);
  view.setInt32(22, side, true);
  view.setUint16(26, 1, true);
  view.setUint16(28, 24, true);
  for (let y = 0; y < side; y++)
    for (let x = 0; x < side; x++)
      for (let c = 0; c < 3; c++) bytes[54 + (side - 1 - y) * row + 3 * x + 2 - c] = pixels[(c * side + y) * side + x]!;
  return `<img alt="" src="data:image/bmp;base64,${Buffer.from(bytes).toString("base64")}">`;
}

// ---- words ----

function shape(c: Llama4Config): string {
  const moe = c.layers.filter((layer) => layer.moe).length;
  const experts =
    moe > 0 ? `, ${c.nExperts} experts in ${moe} of them, ${c.topK} for a token beside the shared one` : "";
  const eyes = c.vision
    ? `; images of ${c.vision.imageSize} pixels in ${c.vision.nLayers} layers of ${c.vision.dim}`
    : "";
  return `${c.layers.length} layers of ${c.dim}, ${c.nHeads} heads, ${c.vocabSize.toLocaleString("en")} tokens${experts}${eyes}`;
}

function short(n: number): string {
  if (n >= 1e9) return `${(n / 1e9).toFixed(2)} B`;
  if (n >= 1e6) return `${(n / 1e6).toFixed(1)} M`;
  return n >= 1e4
    ? `${(n / 1e3).toFixed(0)} k`
    : n >= 1e3
      ? `${(n / 1e3).toFixed(1)} k`
      : String(Math.round(n * 100) / 100);
}

const label = (n: number) =>
  n !== 0 && Math.abs(n) < 0.01 ? n.toExponential(0) : n >= 1000 ? short(n) : String(Number(n.toPrecision(3)));

const escaped = (text: string) =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");

function page(body: string): string {
  return `<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>llama4 train</title>
<style>
:root { color-scheme: light dark; --bg: #faf9f6; --card: #fff; --ink: #1d1d1f; --soft: #77757b; --rule: #e7e4dd; --band: #f3f0e9;
  --c1: #c2410c; --c2: #2563eb; --c3: #15803d; --c4: #9333ea; --l0: .64; --l1: .52; --l2: .4; --crowd: #d9480f; --void: #2563eb }
@media (prefers-color-scheme: dark) { :root { --bg: #141416; --card: #1d1d20; --ink: #ececee; --soft: #98969d; --rule: #303036; --band: #232327;
  --c1: #fb923c; --c2: #60a5fa; --c3: #4ade80; --c4: #c084fc; --l0: .78; --l1: .88; --l2: .68; --crowd: #fb7c3c; --void: #5b9bfa } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 40px 24px 60px; max-width: 1080px; background: var(--bg); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 34px; letter-spacing: -.02em; margin: 0 0 20px } h2 { font-size: 20px; margin: 40px 0 0 }
.eyebrow, .hint, footer, small, figcaption, dt { color: var(--soft) } .eyebrow { margin: 0; letter-spacing: .06em; font-size: 13px }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 0 0 28px }
dl div, figure, article { background: var(--card); border: 1px solid var(--rule); border-radius: 14px; padding: 14px 16px }
dt { font-size: 13px } dd { margin: 0; font-size: 22px; font-variant-numeric: tabular-nums } dd small { font-size: 13px; white-space: nowrap }
figure { margin: 0 0 16px; min-width: 0 } figcaption { font-size: 14px } figcaption b { color: var(--ink); margin-right: 6px }
figcaption i { font-style: normal } .crowd { color: var(--crowd) } .void { color: var(--void) }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(400px, 100%), 1fr)); gap: 0 16px }
.pair:has(> :last-child:nth-child(3)) { grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr)) }
svg { width: 100%; height: auto; display: block; margin-top: 6px } svg text { font: 11px system-ui, sans-serif; fill: var(--soft) }
@media (max-width: 560px) { .wide { overflow: visible } .wide text { font-size: 20px } }
.grid { stroke: var(--rule) } .band0 { fill: transparent } .band1 { fill: var(--band) } .cursor { stroke: var(--soft); stroke-dasharray: 3 3 }
.line { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round } .faint { stroke-width: 1; opacity: .35 } .dots { stroke-width: 1.5 } circle { fill: currentColor }
.legend { margin: 8px 0 0; font-size: 13px; display: grid; grid-template-columns: repeat(auto-fill, minmax(min(150px, 44%), 1fr)); gap: 0 18px }
.legend span { display: flex; gap: 6px; cursor: default } .legend span::before { content: "●" } .legend i { flex: 1; min-width: 0; font-style: normal; overflow-wrap: anywhere }
.legend b { font-weight: normal; font-variant-numeric: tabular-nums; color: var(--ink) }
.picking svg g { opacity: .2 } .picking svg .picked { opacity: 1 } .picked .line { stroke-width: 2.5 } .picking .legend span { opacity: .6 } .picking .legend .picked { opacity: 1 }
output { float: right; font-variant-numeric: tabular-nums; color: var(--soft) }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 14px; margin-top: 12px }
article p { margin: 4px 0; white-space: pre-wrap; overflow-wrap: anywhere } .prompt { color: var(--soft) } .said { font-size: 17px } .expected { color: var(--soft); font-style: italic; font-size: 13px }
.images { display: flex; gap: 6px; flex-wrap: wrap } .images img { width: 64px; height: 64px; border-radius: 8px; image-rendering: pixelated; border: 1px solid var(--rule) }
details { font-size: 13px; color: var(--soft) } ol { list-style: none; padding: 0; margin: 4px 0 } footer { margin-top: 32px; font-size: 13px }
</style>
${body}
<script>
for (const svg of document.querySelectorAll("svg[data-chart]")) {
  const { most, low, high, lines } = JSON.parse(svg.dataset.chart), { width, height } = svg.viewBox.baseVal;
  const figure = svg.closest("figure"), out = figure.querySelector("output"), cursor = svg.querySelector(".cursor");
  const marks = svg.querySelectorAll("g"), entries = figure.querySelectorAll(".legend span"), values = figure.querySelectorAll(".legend b");
  const last = Array.from(values, (b) => b.textContent);
  const pick = (picked) => {
    figure.classList.toggle("picking", picked >= 0);
    for (const list of [marks, entries]) list.forEach((one, i) => one.classList.toggle("picked", i === picked));
  };
  entries.forEach((entry, i) => { entry.onmouseenter = () => pick(i); entry.onmouseleave = () => pick(-1); });
  svg.onmousemove = (event) => {
    const box = svg.getBoundingClientRect(), at = ((event.clientX - box.left) / box.width) * width;
    const step = ((at - ${left}) / (width - ${left + right})) * most;
    if (step < 0 || step > most) return svg.onmouseleave();
    const aloft = 1 - (((event.clientY - box.top) / box.height) * height - ${top}) / (height - ${top + bottom});
    const found = lines.map((points) => points.reduce((a, b) => (Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a), points[0] ?? [0, NaN])[1]);
    const away = found.map((value) => Math.abs(Math.min(value, high) - low - aloft * (high - low)));
    cursor.setAttribute("transform", "translate(" + at + " 0)"); cursor.setAttribute("visibility", "visible");
    out.textContent = "step " + Math.round(step) + (values.length > 0 ? "" : " · " + found[0]);
    values.forEach((b, i) => { b.textContent = found[i]; });
    if (values.length > 0) pick(away.indexOf(Math.min(...away.filter((distance) => distance >= 0))));
  };
  svg.onmouseleave = () => {
    cursor.setAttribute("visibility", "hidden"); out.textContent = "";
    values.forEach((b, i) => { b.textContent = last[i]; });
    pick(-1);
  };
}
</script>
</html>
`;
}
