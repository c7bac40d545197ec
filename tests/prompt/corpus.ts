// Text of many scripts, the same on every run, with all that pre-tokenisers trip over.

/** A stream of numbers in [0, 1) from a seed: mulberry32. */
export function random(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

export const WORDS =
  `the quick Brown FOX jumps over lazy dogs and doesn't I'LL we've You'RE it'S they'd 'twas don'T ''s HTTP/2
  http://a.b/c//d camelCase XMLHttpRequest naïve café Straße ǅungla İstanbul Москва быстрая Ελληνικά γρήγορη
  مرحبا بالعالم שלום हिन्दी में पाठ বাংলা தமிழ் ภาษาไทย 한국어 日本語テキスト 中文文本 ქართული հայերեն አማርኛ ខ្មែរ
  12345 1,234.56 ½ ² Ⅷ ٣٤ १२३ 🙂 👩‍👩‍👧 🇩🇪 e\u0301te\u0301 A\u0301B \u0301x x**2 <|eot|> <|header_start|> {"a": [1]} # ok/`.split(
    /\s+/,
  );

const GAPS = [
  " ",
  " ",
  " ",
  " ",
  " ",
  "  ",
  "\n",
  "\r\n",
  "\n\n",
  " \n",
  "\t",
  "   \n  \n ",
  "\u0085",
  "\ufeff",
  " \u00a0",
  "\u3000",
  "/",
  "'",
  ", ",
  ". ",
];

// First and last code point of blocks: Latin to Cyrillic, Arabic, Indic to Thai, Georgian and Hangul, Greek extended,
// punctuation to arrows, CJK, Hangul, combining marks, letter-like, emoji, mathematical letters, private use, CJK extension.
const BLOCKS: readonly (readonly [number, number])[] = [
  [0x20, 0x7e],
  [0xa0, 0x52f],
  [0x600, 0x6ff],
  [0x900, 0xe7f],
  [0x10a0, 0x11ff],
  [0x1f00, 0x1fff],
  [0x2000, 0x21ff],
  [0x3000, 0x30ff],
  [0x4e00, 0x9fff],
  [0xac00, 0xd7a3],
  [0x300, 0x36f],
  [0x1c, 0x1f],
  [0x1f300, 0x1f6ff],
  [0x1d400, 0x1d7ff],
  [0xe000, 0xe00f],
  [0x20000, 0x200ff],
];

/** At least so many bytes of UTF-8: words of many languages, and words of random characters of one block. */
export function corpus(byteLength: number, seed: number): string {
  const next = random(seed);
  const pick = <T>(list: readonly T[]): T => list[Math.floor(next() * list.length)]!;
  const parts: string[] = [];
  for (let bytes = 0; bytes < byteLength; ) {
    let word = pick(WORDS);
    if (next() < 0.4) {
      const [first, last] = pick(BLOCKS);
      const length = 1 + Math.floor(next() * 8);
      word = Array.from({ length }, () => String.fromCodePoint(first + Math.floor(next() * (last - first + 1)))).join(
        "",
      );
    }
    const part = word + (next() < 0.9 ? pick(GAPS) : "");
    parts.push(part);
    bytes += Buffer.byteLength(part);
  }
  return parts.join("");
}
