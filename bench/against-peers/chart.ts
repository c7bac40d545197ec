// The rows as bars: how much of the machine's ceiling each engine reaches, a panel for each model.

import type { Row } from "./report.ts";

const colours = ["#d9480f", "#4263eb", "#2b8a3e", "#862e9c", "#868e96", "#0b7285"];
const [panelWidth, labelWidth, bar, gap, top] = [460, 150, 13, 12, 46];

/** An SVG picture; a bar is the share of the ceiling, its label the tokens a second. */
export function chartOf(rows: readonly Row[]): string {
  const engines = [...new Set(rows.map((r) => r.engine))];
  const models = [...new Set(rows.map((r) => r.model))];
  const panels = models.map((model) =>
    panel(
      model,
      rows.filter((r) => r.model === model),
      engines,
    ),
  );
  const columns = Math.min(3, models.length);
  const height = Math.max(...panels.map((p) => p.height));
  const [width, lines] = [columns * panelWidth, Math.ceil(models.length / columns)];
  const placed = panels.map(
    ({ body }, i) =>
      `<g transform="translate(${(i % columns) * panelWidth} ${30 + Math.floor(i / columns) * height})">${body}</g>`,
  );
  const legend = engines.map(
    (name, i) =>
      `<rect x="${10 + i * 130}" y="10" width="10" height="10" fill="${colours[i % colours.length]}"/>` +
      `<text x="${25 + i * 130}" y="19">${escaped(name)}</text>`,
  );
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${30 + lines * height}" font-family="sans-serif" font-size="11" fill="#212529">` +
    `<rect width="100%" height="100%" fill="#fff"/>${legend.join("")}${placed.join("")}</svg>\n`
  );
}

function panel(model: string, rows: readonly Row[], engines: readonly string[]): { body: string; height: number } {
  const full = panelWidth - labelWidth - 70; // a ceiling's width
  let y = top;
  const parts = [
    `<text x="10" y="20" font-size="13" font-weight="bold">${escaped(model)}</text>`,
    `<text x="10" y="36" fill="#868e96">tokens/s; length: share of the ceiling probed beside</text>`,
  ];
  for (const name of new Set(rows.map((r) => r.case))) {
    const group = rows.filter((r) => r.case === name);
    parts.push(`<text x="10" y="${y + 10}">${escaped(name)}</text>`);
    for (const { engine, share = 0, median } of group) {
      const width = full * Math.min(share, 1.1);
      const colour = colours[engines.indexOf(engine) % colours.length];
      parts.push(`<rect x="${labelWidth}" y="${y}" width="${width.toFixed(1)}" height="${bar - 2}" fill="${colour}"/>`);
      parts.push(
        `<text x="${(labelWidth + width + 4).toFixed(1)}" y="${y + 10}">${Number(median.toPrecision(3)).toLocaleString("en-US")}</text>`,
      );
      y += bar;
    }
    y += gap;
  }
  const line = `<line x1="${labelWidth + full}" x2="${labelWidth + full}" y1="${top - 4}" y2="${y - gap}" stroke="#adb5bd" stroke-dasharray="3 3"/>`;
  return { body: line + parts.join(""), height: y + gap };
}

const escaped = (text: string) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
