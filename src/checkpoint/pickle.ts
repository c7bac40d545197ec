// A reader for the few pickle instructions with which torch.save writes a dictionary of tensors. Nothing is executed:
// a global outside the short list below is an error, and those inside it become plain values of ours.

import { CheckpointError } from "../tensor/errors.ts";

/** `torch.FloatStorage` and its kin, by name. */
export interface StorageClass {
  readonly kind: "storage class";
  readonly name: string;
}

/** A tensor as `_rebuild_tensor_v2` is called: numbers are in elements of the storage. */
export interface PickledTensor {
  readonly kind: "tensor";
  readonly storage: string;
  readonly key: string;
  readonly elements: number;
  readonly offset: number;
  readonly shape: readonly number[];
  readonly strides: readonly number[];
}

type Value =
  | number
  | string
  | boolean
  | null
  | StorageClass
  | PickledTensor
  | { readonly kind: "storage"; readonly name: string; readonly key: string; readonly elements: number }
  | { readonly kind: "global"; readonly name: string }
  | { readonly kind: "opaque" }
  | { readonly kind: "mark" }
  | { readonly kind: "tuple"; readonly items: readonly Value[] }
  | { readonly kind: "list"; readonly items: Value[] }
  | { readonly kind: "dict"; readonly entries: Map<string, Value> };

const mark: Value = { kind: "mark" };
const opaque: Value = { kind: "opaque" }; // read over: bytes, streams, attributes
const allowed = new Set([
  "torch._utils._rebuild_tensor_v2",
  "collections.OrderedDict",
  "_io.BytesIO", // state of fp8 scaling, dropped
  "_codecs.encode",
]);

/** The tensors of a pickled dictionary; entries of other kinds are left out. */
export function readPickle(bytes: Uint8Array, file: string): Map<string, PickledTensor> {
  const result = new Unpickler(bytes, file).run();
  const tensors = new Map<string, PickledTensor>();
  for (const [name, value] of result) if (isKind(value, "tensor")) tensors.set(name, value);
  return tensors;
}

function isKind<K extends string>(value: Value | undefined, kind: K): value is Extract<Value, { readonly kind: K }> {
  return typeof value === "object" && value !== null && value.kind === kind;
}

class Unpickler {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #file: string;
  readonly #stack: Value[] = [];
  readonly #memo = new Map<number, Value>();
  #at = 0;

  constructor(bytes: Uint8Array, file: string) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    this.#file = file;
  }

  run(): Map<string, Value> {
    for (;;) {
      const opcode = this.#view.getUint8(this.#take(1));
      if (opcode === 0x2e) break; // STOP
      const value = this.#step(opcode);
      if (value !== undefined) this.#stack.push(value);
    }
    const result = this.#pop();
    if (!isKind(result, "dict")) throw this.#bad("its content is no dictionary of tensors");
    return result.entries;
  }

  /** What an instruction pushes. Opcodes by their letters in Python's pickle.py. */
  #step(opcode: number): Value | undefined {
    switch (opcode) {
      case 0x80: // PROTO
        this.#take(1);
        return undefined;
      case 0x95: // FRAME
        this.#take(8);
        return undefined;
      case 0x7d: // }
        return { kind: "dict", entries: new Map() };
      case 0x5d: // ]
        return { kind: "list", items: [] };
      case 0x29: // )
        return { kind: "tuple", items: [] };
      case 0x28: // (
        return mark;
      case 0x4e: // N
        return null;
      case 0x88:
        return true;
      case 0x89:
        return false;
      case 0x4b: // K
        return this.#view.getUint8(this.#take(1));
      case 0x4d: // M
        return this.#view.getUint16(this.#take(2), true);
      case 0x4a: // J
        return this.#view.getInt32(this.#take(4), true);
      case 0x8a: // LONG1
        return this.#long(this.#view.getUint8(this.#take(1)));
      case 0x47: // G
        return this.#view.getFloat64(this.#take(8));
      case 0x58: // X
        return this.#text(this.#view.getUint32(this.#take(4), true));
      case 0x8c: // SHORT_BINUNICODE
        return this.#text(this.#view.getUint8(this.#take(1)));
      case 0x42: // B
        return this.#skip(this.#view.getUint32(this.#take(4), true));
      case 0x43: // C
        return this.#skip(this.#view.getUint8(this.#take(1)));
      case 0x63: // c
        return this.#global(`${this.#line()}.${this.#line()}`);
      case 0x93: {
        const name = this.#pop();
        return this.#global(`${this.#pop()}.${name}`);
      }
      case 0x71: // q
        return this.#remember(this.#view.getUint8(this.#take(1)));
      case 0x72: // r
        return this.#remember(this.#view.getUint32(this.#take(4), true));
      case 0x94: // MEMOIZE
        return this.#remember(this.#memo.size);
      case 0x68: // h
        return this.#recall(this.#view.getUint8(this.#take(1)));
      case 0x6a: // j
        return this.#recall(this.#view.getUint32(this.#take(4), true));
      case 0x74: // t
        return { kind: "tuple", items: this.#toMark() };
      case 0x85:
      case 0x86:
      case 0x87: {
        const items = Array.from({ length: opcode - 0x84 }, () => this.#pop()).reverse();
        return { kind: "tuple", items };
      }
      case 0x73: {
        const value = this.#pop();
        const key = this.#pop();
        return this.#setItems([key, value]);
      }
      case 0x75: // u
        return this.#setItems(this.#toMark());
      case 0x61: // a
        return this.#append([this.#pop()]);
      case 0x65: // e
        return this.#append(this.#toMark());
      case 0x62: // b: attributes of an object that is not rebuilt
        this.#pop();
        return undefined;
      case 0x51: // Q
        return this.#storage(this.#pop());
      case 0x52: // R
      case 0x81: {
        const args = this.#pop();
        return this.#call(this.#pop(), args);
      }
      default:
        throw this.#bad(`the instruction 0x${opcode.toString(16)} has no place in a file of tensors`);
    }
  }

  #bad(what: string): CheckpointError {
    return new CheckpointError(
      `${this.#file}: at byte ${this.#at} of its pickle, ${what}; expected tensors by torch.save`,
    );
  }

  #take(length: number): number {
    if (length > this.#bytes.length - this.#at) throw this.#bad("it ends too early");
    this.#at += length;
    return this.#at - length;
  }

  #pop(): Value {
    const value = this.#stack.pop();
    if (value === undefined) throw this.#bad("a value is missing");
    return value;
  }

  #toMark(): Value[] {
    const at = this.#stack.lastIndexOf(mark);
    if (at < 0) throw this.#bad("a mark is missing");
    const items = this.#stack.splice(at);
    return items.slice(1);
  }

  #remember(index: number): undefined {
    const top = this.#stack.at(-1);
    if (top === undefined) throw this.#bad("a value is missing");
    this.#memo.set(index, top);
  }

  #recall(index: number): Value {
    const value = this.#memo.get(index);
    if (value === undefined) throw this.#bad(`value ${index} was never given`);
    return value;
  }

  #text(length: number): string {
    const at = this.#take(length);
    return new TextDecoder().decode(this.#bytes.subarray(at, at + length));
  }

  #skip(length: number): Value {
    this.#take(length);
    return opaque;
  }

  #line(): string {
    const end = this.#bytes.indexOf(0x0a, this.#at);
    if (end < 0) throw this.#bad("a name does not end");
    const text = this.#text(end - this.#at);
    this.#take(1);
    return text;
  }

  /** Little-endian two's complement of up to 8 bytes. */
  #long(length: number): number {
    if (length > 8) throw this.#bad(`a number of ${length} bytes`);
    let value = 0n;
    const at = this.#take(length);
    for (let i = length - 1; i >= 0; i--) value = (value << 8n) | BigInt(this.#bytes[at + i]!);
    const number = Number(BigInt.asIntN(length * 8, value));
    if (!Number.isSafeInteger(number)) throw this.#bad(`the number ${number}`);
    return number;
  }

  #global(name: string): Value {
    const storage = /^torch\.(\w+Storage)$/.exec(name);
    if (storage) return { kind: "storage class", name: storage[1]! };
    if (!allowed.has(name)) throw this.#bad(`it calls ${name.slice(0, 80)}`);
    return { kind: "global", name };
  }

  #setItems(items: readonly Value[]): undefined {
    const target = this.#stack.at(-1);
    if (target === opaque) return undefined;
    if (!isKind(target, "dict") || items.length % 2) throw this.#bad("entries without a dictionary");
    for (let i = 0; i < items.length; i += 2) {
      const key = items[i];
      if (typeof key !== "string") continue; // attributes by other keys name no tensor
      if (target.entries.has(key)) throw this.#bad(`"${key.slice(0, 80)}" is there twice`);
      target.entries.set(key, items[i + 1]!);
    }
  }

  #append(items: readonly Value[]): undefined {
    const target = this.#stack.at(-1);
    if (!isKind(target, "list")) throw this.#bad("items without a list");
    target.items.push(...items);
  }

  /** ("storage", class, key, device, elements) */
  #storage(id: Value): Value {
    const [tag, type, key, , elements] = isKind(id, "tuple") ? id.items : [];
    if (tag !== "storage" || !isKind(type, "storage class") || typeof key !== "string" || !isCount(elements))
      throw this.#bad("a storage is described in another way");
    return { kind: "storage", name: type.name, key, elements };
  }

  #call(target: Value, args: Value): Value {
    if (!isKind(target, "global") || !isKind(args, "tuple")) throw this.#bad("it calls what is no function");
    if (target.name === "collections.OrderedDict") return { kind: "dict", entries: new Map() };
    if (target.name !== "torch._utils._rebuild_tensor_v2") return opaque;
    const [storage, offset, shape, strides] = args.items;
    if (!isKind(storage, "storage") || !isCount(offset) || !isKind(shape, "tuple") || !isKind(strides, "tuple"))
      throw this.#bad("a tensor is described in another way");
    if (![...shape.items, ...strides.items].every(isCount) || shape.items.length !== strides.items.length)
      throw this.#bad("a tensor's shape is no list of counts");
    return {
      kind: "tensor",
      storage: storage.name,
      key: storage.key,
      elements: storage.elements,
      offset,
      shape: shape.items as number[], // checked above, as the next
      strides: strides.items as number[],
    };
  }
}

function isCount(value: Value | undefined): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
}
