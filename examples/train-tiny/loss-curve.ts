// The loss over a run, drawn: a point for every few steps, and the held-out losses at their steps.

type Entry = Readonly<Record<string, unknown>>;

const [width, height] = [760, 340];
const [left, right, top, bottom] = [46, 120, 18, 34];
const most = 7; // nats: the first steps are above

/** Heights from the top down, each moved as little as it takes for a line of text, and none below the curves. */
function apart(heights: readonly number[]): number[] {
  const line = 13;
  const places: number[] = [];
  for (const at of heights) places.push(Math.max(at, (places.at(-1) ?? -Infinity) + line));
  let free = height - bottom;
  for (let i = places.length - 1; i >= 0; i--) {
    places[i] = Math.min(places[i]!, free);
    free = places[i]! - line;
  }
  return places;
}

export function lossCurve(log: readonly Entry[]): string {
  const steps = log.filter(({ type }) => type === "step") as unknown as { step: number; phase: number; loss: number }[];
  const held = log.filter(({ type }) => type === "heldOut") as unknown as {
    step: number;
    losses: Record<string, { loss: number }>;
  }[];
  const last = steps.at(-1)!.step;
  const x = (step: number) => (left + ((width - left - right) * step) / last).toFixed(1);
  const y = (loss: number) => (top + (height - top - bottom) * (1 - Math.min(most, loss) / most)).toFixed(1);
  const line = (points: readonly (readonly [number, number])[]) => points.map(([s, l]) => `${x(s)},${y(l)}`).join(" ");
  const bucket = Math.ceil(steps.length / 240);
  const means: [number, number][] = [];
  for (let i = 0; i + bucket <= steps.length; i += bucket) {
    const part = steps.slice(i, i + bucket);
    means.push([part.at(-1)!.step, part.reduce((sum, { loss }) => sum + loss, 0) / part.length]);
  }
  const turns = steps.filter(({ phase }, i) => i > 0 && phase !== steps[i - 1]!.phase).map(({ step }) => x(step));
  const names = Object.keys(held[0]?.losses ?? {});
  const hues = names.map((_, i) => `hsl(${Math.round((360 * i) / names.length)} 65% ${i % 2 ? 38 : 52}%)`);
  const ends = names
    .map((name, i) => ({ name, hue: hues[i]!, at: Number(y(held.at(-1)!.losses[name]!.loss)) }))
    .sort((a, b) => a.at - b.at);
  const places = apart(ends.map(({ at }) => at));
  const labels = ends.map(
    ({ name, hue }, i) =>
      `<text x="${width - right + 8}" y="${(places[i]! + 4).toFixed(1)}" fill="${hue}">${name}</text>`,
  );
  const grid = Array.from({ length: most + 1 }, (_, nats) => [
    `<line x1="${left}" x2="${width - right}" y1="${y(nats)}" y2="${y(nats)}" stroke="#8884"/>`,
    `<text x="${left - 8}" y="${Number(y(nats)) + 4}" text-anchor="end">${nats}</text>`,
  ]);
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="system-ui, sans-serif" font-size="12" fill="#888">
<title>Loss over ${last.toLocaleString("en")} steps</title>
${grid.flat().join("\n")}
${turns.map((at) => `<line x1="${at}" x2="${at}" y1="${top}" y2="${height - bottom}" stroke="#888" stroke-dasharray="4 4"/>`).join("\n")}
<polyline fill="none" stroke="#888" stroke-opacity="0.8" points="${line(means)}"/>
${names.map((name, i) => `<polyline fill="none" stroke="${hues[i]}" stroke-width="2" points="${line(held.map(({ step, losses }) => [step, losses[name]!.loss]))}"/>`).join("\n")}
${labels.join("\n")}
<text x="${left}" y="${height - 10}">0</text>
<text x="${width - right}" y="${height - 10}" text-anchor="end">${last.toLocaleString("en")} steps</text>
<text x="${left}" y="12">nats a token: grey while learning, colours held out; dashed: another mix</text>
</svg>
`;
}
