// Whether an answer is right, and what a number of right ones says.

/**
 * An answer as it is compared: lower case, without punctuation and articles, words one space apart (after Rajpurkar et al.
 * 2016, arXiv:1606.05250). Letters, digits and marks of every script stay.
 */
export function normalised(answer: string): string {
  const words = answer
    .normalize("NFKC")
    .toLowerCase()
    .replaceAll(/[^\p{L}\p{N}\p{M}\s]/gu, " ")
    .split(/\s+/);
  const said = words.filter((word) => word !== "");
  const more = said.filter((word) => !articles.has(word));
  return (more.length > 0 ? more : said).join(" "); // of several choices, "A" is one
}

const articles: ReadonlySet<string> = new Set(["a", "an", "the"]);

/** Whether what was said is one of the accepted answers, normalised. */
export function isRight(said: string, accepted: readonly string[]): boolean {
  const words = normalised(said);
  return accepted.some((answer) => normalised(answer) === words);
}

/**
 * The final answer of one that says first what it rests on: "no" of "A dog and a frog: no."; all of it where nothing stands behind a
 * colon and a space.
 */
export function finalAnswer(answer: string): string {
  const final = answer.split(/:\s+/).at(-1)!;
  return normalised(final) === "" ? answer : final;
}

/** How many of some were right, and where the true share lies with 95 % confidence (Wilson 1927). */
export interface Share {
  readonly right: number;
  readonly of: number;
  readonly share: number;
  readonly low: number;
  readonly high: number;
}

const z = 1.96; // of the normal distribution, for 95 %

export function shareOf(verdicts: readonly boolean[]): Share {
  const n = verdicts.length;
  const right = verdicts.filter(Boolean).length;
  if (n === 0) return { right, of: 0, share: 0, low: 0, high: 1 };
  const p = right / n;
  const middle = (p + z ** 2 / (2 * n)) / (1 + z ** 2 / n);
  const reach = (z / (1 + z ** 2 / n)) * Math.sqrt((p * (1 - p)) / n + z ** 2 / (4 * n ** 2));
  return { right, of: n, share: p, low: Math.max(0, middle - reach), high: Math.min(1, middle + reach) };
}

/** What always saying the commonest answer would reach: the share of questions that accept it. */
export function commonestShare(questions: readonly (readonly string[])[]): number {
  const counts = new Map<string, number>();
  for (const accepted of questions)
    for (const answer of new Set(accepted.map(normalised))) counts.set(answer, (counts.get(answer) ?? 0) + 1);
  return questions.length === 0 ? 0 : Math.max(...counts.values()) / questions.length;
}
