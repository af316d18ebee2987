import { describe, expect, it } from "vitest";

import { en } from "../src/i18n/en";
import { languageFor } from "../src/i18n/language";
import { zh } from "../src/i18n/zh";

type Messages = Record<string, string>;
const english: Messages = en;
const chinese: Messages = zh;

const placeholders = (text: string): string[] => [...text.matchAll(/\{(\w+)\}/g)].map((match) => match[1]!).sort();

/** Text of components and scripts, by path. */
const sources = import.meta.glob("../src/**/*.{vue,ts}", { query: "?raw", import: "default", eager: true }) as Messages;

describe("the messages", () => {
  it("are the same in both languages, with the same placeholders", () => {
    expect(Object.keys(chinese)).toEqual(Object.keys(english));
    for (const [key, text] of Object.entries(english)) {
      expect(placeholders(chinese[key]!), key).toEqual(placeholders(text));
      expect(text.trim(), key).not.toBe("");
      expect(chinese[key]!.trim(), key).not.toBe("");
    }
  });

  it("are all used", () => {
    const code = Object.entries(sources)
      .filter(([path]) => !path.includes("/i18n/"))
      .map(([, text]) => text)
      .join("\n");
    const patterns = [...code.matchAll(/`([a-z.]+)\$\{[^}]+\}(\.[a-z]+)?`/g)].map(
      ([, start, end]) => new RegExp(`^${start!.replaceAll(".", "\\.")}\\w+${(end ?? "").replace(".", "\\.")}$`),
    );
    const isUsed = (key: string): boolean =>
      code.includes(`"${key}"`) || code.includes(`'${key}'`) || patterns.some((pattern) => pattern.test(key));
    expect(Object.keys(english).filter((key) => !isUsed(key))).toEqual([]);
  });

  it("leave no Chinese words in the components, but for names and what is read in Chinese anyway", () => {
    const allowed = ["/i18n/", "/pages/examples.ts", "/shell/ShellHeader.vue"];
    for (const [path, text] of Object.entries(sources)) {
      if (allowed.some((part) => path.includes(part))) continue;
      expect(text.match(/[\u4e00-\u9fff]+/g), path).toBeNull();
    }
  });
});

describe("the language", () => {
  it.each([
    [["zh-TW", "en"], "zh"],
    [["de", "zh-Hans-CN"], "zh"],
    [["en-GB", "zh"], "en"],
    [["fr"], "en"],
    [[], "en"],
  ])("for %j is %s", (preferred, language) => {
    expect(languageFor(preferred)).toBe(language);
  });
});
