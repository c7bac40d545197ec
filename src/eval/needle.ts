// A sentence with a number, hidden among other lines, and asked for at the end (Kamradt 2023, "needle in a haystack").

export interface Line {
  readonly text: string;
  readonly tokens: number;
}

export interface Needle {
  /** Lines with the needle among them, and the question. */
  readonly prompt: string;
  readonly answer: string;
  /** Where the needle stands: 0 at the beginning, 1 right before the question. */
  readonly depth: number;
}

const things = ["password", "code", "secret number", "magic number", "room number", "pin"];

/**
 * Hides a needle in at most `tokens` tokens of lines, from a random one on and around again. `random` draws from [0, 1).
 */
export function hide(lines: readonly Line[], tokens: number, depth: number, random: () => number): Needle {
  const draw = (n: number) => Math.floor(random() * n);
  const thing = things[draw(things.length)]!;
  const number = String(100 + draw(9900));
  const chosen: string[] = [];
  let left = tokens;
  for (let i = draw(lines.length); lines[i % lines.length]!.tokens <= left; i++) {
    const { text, tokens: length } = lines[i % lines.length]!;
    chosen.push(text);
    left -= Math.max(1, length);
  }
  chosen.splice(Math.round(depth * chosen.length), 0, `The ${thing} is ${number}.`);
  return { prompt: `${chosen.join("\n")}\nWhat is the ${thing}?`, answer: number, depth };
}

/** Whether a reply says the number, as a word of its own. */
export const says = (reply: string, number: string): boolean => reply.split(/[^\p{L}\p{N}]+/u).includes(number);
