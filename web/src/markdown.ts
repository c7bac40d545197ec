// Markdown to safe HTML, block by block, so that a reply that grows renders its last block only.

import DOMPurify from "dompurify";
import hljs from "highlight.js/lib/core";
import bash from "highlight.js/lib/languages/bash";
import c from "highlight.js/lib/languages/c";
import cpp from "highlight.js/lib/languages/cpp";
import csharp from "highlight.js/lib/languages/csharp";
import css from "highlight.js/lib/languages/css";
import diff from "highlight.js/lib/languages/diff";
import go from "highlight.js/lib/languages/go";
import java from "highlight.js/lib/languages/java";
import javascript from "highlight.js/lib/languages/javascript";
import json from "highlight.js/lib/languages/json";
import kotlin from "highlight.js/lib/languages/kotlin";
import lua from "highlight.js/lib/languages/lua";
import markdown from "highlight.js/lib/languages/markdown";
import php from "highlight.js/lib/languages/php";
import python from "highlight.js/lib/languages/python";
import ruby from "highlight.js/lib/languages/ruby";
import rust from "highlight.js/lib/languages/rust";
import sql from "highlight.js/lib/languages/sql";
import swift from "highlight.js/lib/languages/swift";
import typescript from "highlight.js/lib/languages/typescript";
import xml from "highlight.js/lib/languages/xml";
import yaml from "highlight.js/lib/languages/yaml";
import { Marked, type Token, type TokensList } from "marked";

const languages = {
  ...{ bash, c, cpp, csharp, css, diff, go, java, javascript, json, kotlin, lua, markdown },
  ...{ php, python, ruby, rust, sql, swift, typescript, xml, yaml },
};
for (const [name, language] of Object.entries(languages)) hljs.registerLanguage(name, language);

const escaped = (text: string) => text.replace(/[&<>"']/g, (char) => `&#${char.charCodeAt(0)};`);

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    code({ text, lang = "" }) {
      const name = lang.trim().split(/\s/)[0]!.toLowerCase();
      const body = hljs.getLanguage(name) ? hljs.highlight(text, { language: name }).value : escaped(text);
      // a region that scrolls has to be reached by keyboard
      return `<div class="code"><div class="code-head"><span>${escaped(name === "" ? "text" : name)}</span><button type="button" data-copy>Copy</button></div><pre tabindex="0"><code>${body}</code></pre></div>`;
    },
    table(token) {
      const cell = (tag: string, { tokens, align }: (typeof token.header)[number]) =>
        `<${tag}${align ? ` class="${align}"` : ""}>${this.parser.parseInline(tokens)}</${tag}>`;
      const row = (cells: typeof token.header, tag: string) => `<tr>${cells.map((c) => cell(tag, c)).join("")}</tr>`;
      return `<div class="table" tabindex="0"><table><thead>${row(token.header, "th")}</thead><tbody>${token.rows.map((r) => row(r, "td")).join("")}</tbody></table></div>`;
    },
    checkbox({ checked }) {
      return `<input type="checkbox" aria-label="${checked ? "done" : "to do"}" disabled${checked ? " checked" : ""}> `;
    },
    // A picture elsewhere would tell its host who reads; the page's policy forbids it, so a link stands for it.
    image({ href, text }) {
      return `<a href="${escaped(href)}">${escaped(text === "" ? "picture" : text)}</a>`;
    },
    // What a model writes as HTML is shown as it wrote it.
    html({ text }) {
      return escaped(text);
    },
  },
});

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName !== "A") return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer nofollow");
});

/** HTML that DOMPurify has made; in browsers that know trusted types, and take nothing else, it is one. */
export type SafeHtml = ReturnType<typeof safe>;

/** Attributes that DOMPurify would take for addresses, and drop. */
const notAddresses = ["type", "start", "tabindex", "aria-label"];

const allowed = {
  RETURN_TRUSTED_TYPE: true as const,
  ALLOWED_TAGS: [
    ...[
      "a",
      "blockquote",
      "br",
      "button",
      "code",
      "del",
      "div",
      "em",
      "h1",
      "h2",
      "h3",
      "h4",
      "h5",
      "h6",
      "hr",
      "input",
    ],
    ...["li", "ol", "p", "pre", "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"],
  ],
  ALLOWED_ATTR: ["href", "class", "checked", "disabled", "data-copy", "target", "rel", ...notAddresses],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ADD_URI_SAFE_ATTR: notAddresses,
};

/** Safe HTML of each top-level block of a text. */
export class Rendered {
  readonly #known = new Map<string, SafeHtml>();

  blocks(text: string): SafeHtml[] {
    const tokens = marked.lexer(text);
    const next = new Map<string, SafeHtml>();
    const html = tokens
      .filter(({ type }) => type !== "space" && type !== "def")
      .map((token) => {
        const made = this.#known.get(token.raw) ?? safe(token, tokens.links);
        next.set(token.raw, made);
        return made;
      });
    this.#known.clear();
    for (const [raw, made] of next) this.#known.set(raw, made);
    return html;
  }
}

function safe(token: Token, links: TokensList["links"]) {
  const list = Object.assign([token], { links });
  return DOMPurify.sanitize(marked.parser(list), allowed);
}
