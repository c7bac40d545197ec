import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type Message, metaFormat, type PlainPart } from "../../src/prompt/chat-format.ts";
import { byteLevel } from "../../src/prompt/small-vocabularies.ts";
import { chatFormat, continuationTemplate, templateFormat } from "../../src/prompt/template.ts";
import { CheckpointError, RequestError } from "../../src/tensor/errors.ts";

const bytes = byteLevel({ vocabSize: 512 });

// In the manner of Llama 4's own: trims, lists tools, tells parts from text.
const TEMPLATE = `{{- bos_token }}
{%- if tools is not none %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{%- for message in messages %}
    {{- '<|header_start|>' + message['role'] + '<|header_end|>\\n\\n' }}
    {%- if message['content'] is string %}
        {{- message['content'] | trim }}
    {%- else %}
        {%- for content in message['content'] %}
            {%- if content['type'] == 'image' %}{{- '<|image|>' }}{%- else %}{{- content['text'] | trim }}{%- endif %}
        {%- endfor %}
    {%- endif %}
    {%- if 'tool_calls' in message %}
        {%- for call in message.tool_calls %}
            {{- '{"name": "' + call.function.name + '", "parameters": ' }}{{- call.function.arguments | tojson }}{{- "}" }}
        {%- endfor %}
    {%- endif %}
    {{- "<|eot|>" }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|header_start|>assistant<|header_end|>\\n\\n' }}{%- endif %}`;

const format = templateFormat(bytes, TEMPLATE);
const specials = (messages: Message<PlainPart>[], options = {}) =>
  [...format.encode(messages, options).ids].filter((id) => bytes.isSpecial(id));

describe("a checkpoint's own template", () => {
  test("goes on with an open message, which has no end", () => {
    const turns = (content: string): Message<PlainPart>[] => [
      { role: "user", content: "It is <|eot|>" },
      { role: "assistant", content, isOpen: true },
    ];
    for (const text of ["It is", "It is <|eot|> <|"]) {
      const { ids } = format.encode(turns(text));
      const before = format.encode(turns(text).slice(0, 1)).ids;
      expect([...ids]).toEqual([...before, ...bytes.encode(text)]);
    }
    expect(() => templateFormat(bytes, "{{ bos_token }}").encode(turns("It is"))).toThrow("does not write its text");
    expect(() => format.encode(turns(""))).toThrow(RequestError);
  });

  test("is rendered, and its special tokens are ids", () => {
    const messages: Message<PlainPart>[] = [
      { role: "user", content: "  hi " },
      { role: "assistant", content: "", toolCalls: [{ name: "f", arguments: { a: 1 } }] },
      { role: "tool", content: "3" },
    ];
    const { ids } = format.encode(messages);
    expect(bytes.decode(ids)).toBe(
      "<|begin_of_text|><|header_start|>user<|header_end|>\n\nhi<|eot|>" +
        '<|header_start|>assistant<|header_end|>\n\n{"name": "f", "parameters": {"a": 1}}<|eot|>' +
        "<|header_start|>tool<|header_end|>\n\n3<|eot|><|header_start|>assistant<|header_end|>\n\n",
    );
    expect([...ids].filter((id) => bytes.isSpecial(id))).toHaveLength(1 + 3 * 3 + 2);
  });

  test("places images", () => {
    const { ids, images } = format.encode([
      { role: "user", content: [{ type: "image" }, { type: "text", text: "what? <|image|>" }] },
    ]);
    expect(images).toHaveLength(1);
    expect(ids[images[0]!]).toBe(bytes.special.get("<|image|>"));
    expect(bytes.decode(ids)).toContain("<|image|>what? <|image|><|eot|>");
  });

  test("gives the ids of Meta's format where both say the same", () => {
    const messages: Message<PlainPart>[] = [
      { role: "system", content: "Be brief." },
      { role: "user", content: "hi" },
    ];
    expect(format.encode(messages).ids).toEqual(metaFormat(bytes).encode(messages).ids);
    expect(chatFormat(bytes).encode(messages)).toEqual(metaFormat(bytes).encode(messages));
    expect(chatFormat(bytes, TEMPLATE).encode(messages)).toEqual(format.encode(messages));
  });

  test("no text yields a special token, also where parts are trimmed and joined", () => {
    const bit = fc.constantFrom(
      "<",
      "|",
      ">",
      "<|eot|>",
      "<|header_start|>",
      "<|image|>",
      "x",
      "<|eo",
      "t|>",
      " ",
      "\ufdd0",
    );
    const text = fc.array(bit).map((bits) => bits.join(""));
    const plain = specials([{ role: "user", content: [{ type: "text", text: "x" }] }]);
    fc.assert(
      fc.property(fc.array(text), (texts) => {
        const content = texts.map((t) => ({ type: "text" as const, text: t }));
        expect(specials([{ role: "user", content }])).toEqual(plain);
        const { ids } = format.encode([{ role: "user", content }]);
        expect(bytes.decode(ids)).toContain(texts.map((t) => t.trim()).join(""));
      }),
    );
  });

  test("no tool and no call yields one either", () => {
    const evil = "<|eot|>";
    const tools = [{ name: evil, description: evil, parameters: { [evil]: evil } }];
    const messages: Message<PlainPart>[] = [
      { role: "assistant", content: evil, toolCalls: [{ name: evil, arguments: { [evil]: [evil] } }] },
    ];
    expect(specials(messages, { tools })).toEqual(specials([{ role: "assistant", content: "" }]));
    expect(bytes.decode(format.encode(messages, { tools }).ids)).toContain('"description": "<|eot|>"');
  });
});

describe("templates that fail", () => {
  const use = (template: string) => templateFormat(bytes, template).encode([{ role: "user", content: "x" }]);

  test.each([
    ["does not parse", "{% for %}"],
    ["never ends", "{% if true %}"],
    ["is a megabyte and more", "x".repeat(2 ** 20 + 1)],
    ["nests a million deep", "{{ ".concat("(".repeat(200_000), "1", ")".repeat(200_000), " }}")],
    ["calls what is not there", "{{ nothing() }}"],
    [
      "runs for ever",
      "{% for a in range(1000) %}{% for b in range(1000) %}{% for c in range(1000) %}{% endfor %}{% endfor %}{% endfor %}",
    ],
    ["asks for a huge range", "{% for a in range(1000000000000) %}{% endfor %}"],
    ["places an image that nobody gave", "<|image|>"],
  ])("one that %s is a matter of the checkpoint", (_, template) => {
    expect(() => use(template)).toThrow(CheckpointError);
  });

  test("that of a model that knows no chats is what was said, turns a paragraph each, and nothing else", () => {
    const format = templateFormat(bytes, continuationTemplate);
    const { ids, images } = format.encode([
      { role: "user", content: [{ type: "image" }, { type: "text", text: "Call me" }] },
      { role: "assistant", content: " Ishmael." },
      { role: "user", content: "<|eot|> I went" },
    ]);
    expect(bytes.decode(Array.from(ids))).toBe("<|begin_of_text|><|image|>Call me Ishmael.\n\n<|eot|> I went");
    expect(images).toEqual([1]);
    expect(ids.filter((id) => bytes.isSpecial(id))).toHaveLength(2);
  });

  test("one that refuses the messages says so to the caller", () => {
    expect(() => use("{{ raise_exception('roles must alternate') }}")).toThrow(RequestError);
    expect(() => use("{{ raise_exception('roles must alternate') }}")).toThrow("roles must alternate");
  });

  test("an image that the template leaves out is noticed", () => {
    expect(() => templateFormat(bytes, "x").encode([{ role: "user", content: [{ type: "image" }] }])).toThrow(
      /places 0 images and the messages have 1/,
    );
  });
});
