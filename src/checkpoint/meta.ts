// One consolidated.NN.pth of Meta's: a zip of stored storages and a pickle that says which tensor is which part of them.

import { type DType, dtypes } from "../tensor/dtype.ts";
import { CheckpointError } from "../tensor/errors.ts";
import type { ByteSource, TensorView } from "../tensor/tensor.ts";
import { show } from "./json.ts";
import { type PickledTensor, readPickle } from "./pickle.ts";
import { extentProduct } from "./safetensors.ts";
import { readZip, type ZipEntry } from "./zip.ts";

const storages: Readonly<Record<string, DType | undefined>> = {
  DoubleStorage: "f64",
  FloatStorage: "f32",
  HalfStorage: "f16",
  BFloat16Storage: "bf16",
  LongStorage: "i64",
  IntStorage: "i32",
  ShortStorage: "i16",
  CharStorage: "i8",
};

const largestPickle = 64 * 2 ** 20; // of names and shapes; the published shards' have less than one MiB

/** The tensors of one shard; those of bytes and truth values, which only carry training's state, are left out. */
export async function readTorch(source: ByteSource): Promise<TensorView[]> {
  const entries = await readZip(source);
  const pickle = [...entries].find(([name]) => name.endsWith("/data.pkl"));
  if (!pickle) throw new CheckpointError(`${source.name}: no data.pkl in the archive; expected a file by torch.save`);
  const [name, { offset, byteLength }] = pickle;
  if (byteLength > largestPickle)
    throw new CheckpointError(`${source.name}: ${name} has ${byteLength} bytes; expected at most ${largestPickle}`);
  const root = name.slice(0, -"data.pkl".length);
  const order = entries.get(`${root}byteorder`);
  if (order && order.byteLength <= 16) {
    const text = new TextDecoder().decode(await source.read(order.offset, order.byteLength));
    if (text !== "little")
      throw new CheckpointError(`${source.name}: its byte order is ${show(text)}; expected little`);
  }
  const tensors = readPickle(await source.read(offset, byteLength), source.name);
  return [...tensors].flatMap(([key, tensor]) => {
    const dtype = storages[tensor.storage];
    return dtype ? [view(source, key, dtype, tensor, entries.get(`${root}data/${tensor.key}`))] : [];
  });
}

function view(
  source: ByteSource,
  name: string,
  dtype: DType,
  { key, elements, offset, shape, strides }: PickledTensor,
  entry: ZipEntry | undefined,
): TensorView {
  const bad = (sentence: string) => new CheckpointError(`${source.name}: ${show(name)} ${sentence}`);
  const size = dtypes[dtype].blockBytes;
  if (!entry) throw bad(`lies in the storage ${show(key)}, which is not in the archive`);
  if (elements * size !== entry.byteLength)
    throw bad(`lies in a storage of ${elements} ${dtype} and ${entry.byteLength} bytes; expected ${elements * size}`);
  const n = extentProduct(shape);
  if (n === undefined || offset + n > elements)
    throw bad(`is [${shape.join(", ")}] from element ${offset} of ${elements}; expected a part of its storage`);
  let expected = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    if (shape[axis]! > 1 && strides[axis] !== expected)
      throw bad(`has the strides [${strides.join(", ")}]; expected row-major, save a contiguous copy`);
    expected *= shape[axis]!;
  }
  return { name, dtype, shape, source, offset: entry.offset + offset * size };
}
