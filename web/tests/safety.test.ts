import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";

const sources = import.meta.glob("../src/**/*.{vue,ts,css}", { query: "?raw", import: "default", eager: true }) as Record<
  string,
  string
>;
const index = readFileSync(new URL("../index.html", import.meta.url), "utf-8");
const lock = readFileSync(new URL("../package-lock.json", import.meta.url), "utf-8");

/** What would let text become code or markup, or let a request leave this origin. */
const FORBIDDEN: Record<string, RegExp> = {
  "markup from text": /v-html|innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment/,
  "code from text": /\beval\s*\(|new Function\b|set(?:Timeout|Interval)\(\s*["'`]/,
  "another origin": /\b(?:https?|wss?):\/\/|["'(]\/\/[a-z]/i,
  "a style attribute": /\sstyle="|setAttribute\(\s*["']style/,
};

describe("the sources", () => {
  it.each(Object.keys(FORBIDDEN))("hold nothing that makes %s", (name) => {
    expect(Object.keys(sources).length).toBeGreaterThan(30);
    for (const [path, text] of Object.entries(sources)) expect(text.match(FORBIDDEN[name]!), path).toBeNull();
    expect(index.match(FORBIDDEN[name]!)).toBeNull();
  });

  it("have no script or style in the page itself", () => {
    expect(index).not.toMatch(/<style|<script(?![^>]*\ssrc=)|\son\w+=/);
  });

  it("come with a lock file that names no place to download from", () => {
    expect(JSON.parse(lock)).toHaveProperty("packages");
    expect(lock).not.toMatch(/"resolved"/);
    expect(lock.match(/"integrity"/g)!.length).toBeGreaterThan(40);
  });
});
