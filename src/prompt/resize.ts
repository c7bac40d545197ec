// Bilinear resize with antialiasing, byte for byte as Pillow's, which the model was trained with (specification §8.3): the
// rule of ImagingResample (Pillow 12.3.0, src/libImaging/Resample.c), with which tests/golden/llama4/preprocess_sizes.json is
// made.
//
// n samples of an axis before · m after

/** An image of 8-bit RGB pixels `[height, width, 3]`. */
export interface Pixels {
  readonly data: Uint8Array;
  readonly width: number;
  readonly height: number;
}

/** The image at another size, its sides scaled each on its own. */
export function resize(image: Pixels, width: number, height: number): Pixels {
  // Between the two passes pixels are rounded, so their order shows; Pillow changes it for very tall images.
  const isTall = image.height > image.width * 100 && height < image.height;
  return isTall ? toWidth(toHeight(image, height), width) : toHeight(toWidth(image, width), height);
}

/** Fractions are kept in 22 bits, so that a sum of weighted bytes fits 31: Pillow's PRECISION_BITS. */
const PRECISION = 22;
const HALF = 1 << (PRECISION - 1);

/** Which inputs make output k of an axis: `taps[k]` of them from `first[k]` on, with weights from `k · stride` on. */
interface Filter {
  readonly first: Int32Array;
  readonly taps: Int32Array;
  readonly weights: Int32Array;
  readonly stride: number;
}

/** Weights of a triangle, as wide as an output pixel where the axis shrinks; Pillow's rounding throughout. */
function triangle(n: number, m: number): Filter {
  const ratio = n / m;
  const support = Math.max(ratio, 1);
  const inverse = 1 / support;
  const stride = 2 * Math.ceil(support) + 1;
  const first = new Int32Array(m);
  const taps = new Int32Array(m);
  const weights = new Int32Array(m * stride);
  const exact = new Float64Array(stride);
  for (let k = 0; k < m; k++) {
    const centre = (k + 0.5) * ratio;
    const from = Math.max(Math.trunc(centre - support + 0.5), 0);
    const count = Math.min(Math.trunc(centre + support + 0.5), n) - from;
    let sum = 0;
    for (let t = 0; t < count; t++) {
      exact[t] = Math.max(0, 1 - Math.abs((t + from - centre + 0.5) * inverse));
      sum += exact[t]!;
    }
    for (let t = 0; t < count; t++) weights[k * stride + t] = Math.trunc(0.5 + (exact[t]! / sum) * (1 << PRECISION));
    first[k] = from;
    taps[k] = count;
  }
  return { first, taps, weights, stride };
}

function toWidth(image: Pixels, m: number): Pixels {
  const { data, width: n, height } = image;
  if (m === n) return image;
  const { first, taps, weights, stride } = triangle(n, m);
  const out = new Uint8ClampedArray(height * m * 3);
  let o = 0;
  for (let y = 0; y < height; y++) {
    const row = y * n * 3;
    for (let k = 0; k < m; k++) {
      let i = row + first[k]! * 3;
      let w = k * stride;
      let r = HALF;
      let g = HALF;
      let b = HALF;
      for (const end = w + taps[k]!; w < end; w++, i += 3) {
        const weight = weights[w]!;
        r = (r + Math.imul(data[i]!, weight)) | 0;
        g = (g + Math.imul(data[i + 1]!, weight)) | 0;
        b = (b + Math.imul(data[i + 2]!, weight)) | 0;
      }
      out[o] = r >> PRECISION;
      out[o + 1] = g >> PRECISION;
      out[o + 2] = b >> PRECISION;
      o += 3;
    }
  }
  return { data: new Uint8Array(out.buffer), width: m, height };
}

function toHeight(image: Pixels, m: number): Pixels {
  const { data, width, height: n } = image;
  if (m === n) return image;
  const { first, taps, weights, stride } = triangle(n, m);
  const length = width * 3;
  const out = new Uint8ClampedArray(m * length);
  const sums = new Int32Array(length);
  for (let k = 0; k < m; k++) {
    sums.fill(HALF);
    for (let t = 0; t < taps[k]!; t++) {
      const weight = weights[k * stride + t]!;
      const row = (first[k]! + t) * length;
      if (weight !== 0) for (let x = 0; x < length; x++) sums[x] = sums[x]! + Math.imul(data[row + x]!, weight);
    }
    for (let x = 0; x < length; x++) out[k * length + x] = sums[x]! >> PRECISION;
  }
  return { data: new Uint8Array(out.buffer), width, height: m };
}
