import { describe, expect, it } from "vitest";

import { emptyBlanks, joined, optionsOf } from "../src/fill/filling";
import { countBlanks, fillFields, piecesForOne, piecesOf, segmentsOf, withBlank } from "../src/text/blanks";

describe("a text with blanks", () => {
  it.each([
    ["今天__真好。", ["今天", "真好。"]],
    ["____", ["", ""]],
    ["a_b", ["a_b"]],
    ["甲＿＿乙<blank>丙<span>丁", ["甲", "乙", "丙", "丁"]],
    ["_＿混", ["", "混"]],
    ["", [""]],
    ["__<blank>__", ["", "", "", ""]],
  ])("%j has the parts %j", (text, pieces) => {
    expect(piecesOf(text)).toEqual(pieces);
    expect(countBlanks(text)).toBe(pieces.length - 1);
    expect(segmentsOf(text).map((segment) => segment.text).join("")).toBe(text);
    expect(segmentsOf(text).filter(({ kind }) => kind === "blank")).toHaveLength(pieces.length - 1);
  });

  it("is sent as text where that can be read back", () => {
    expect(fillFields(["今天", "真好。"])).toEqual({ text: "今天__真好。" });
  });

  it.each([[["a_", "b"]], [["a__b", "c"]], [["a", "", "b"]], [["<blank>", "x"]]])(
    "is sent in pieces where %j would be misread",
    (pieces) => {
      expect(fillFields(pieces)).toEqual({ pieces });
    },
  );
});

describe("one blank again", () => {
  const pieces = ["甲", "乙", "丙", "丁"];
  const answers = ["1", "2", "3"];

  it.each([
    [0, ["甲", "乙2丙3丁"]],
    [1, ["甲1乙", "丙3丁"]],
    [2, ["甲1乙2丙", "丁"]],
  ])("number %i has the other answers around it", (blank, expected) => {
    expect(piecesForOne(pieces, answers, blank)).toEqual(expected);
  });
});

describe("setting a blank", () => {
  it("replaces the selection and leaves the caret behind it", () => {
    expect(withBlank("今天天气真好", 2, 4)).toEqual({ text: "今天__真好", caret: 4 });
  });

  it("does not grow together with a blank beside it", () => {
    expect(countBlanks(withBlank("甲__", 3, 3).text)).toBe(2);
    expect(countBlanks(withBlank("__乙", 0, 0).text)).toBe(2);
  });
});

describe("what may stand in a blank", () => {
  it("is the answer, then others, then earlier ones, each text once", () => {
    const alternatives = [{ text: "雪", probability: 0.1 }, { text: "雨", probability: 0.05 }];
    const filled = { index: 0, text: "雨", probability: 0.2, closed: true, alternatives };
    expect(optionsOf(filled, [{ text: "风", probability: null }])).toEqual([
      { text: "雨", probability: 0.2 },
      { text: "雪", probability: 0.1 },
      { text: "风", probability: null },
    ]);
  });

  it("is part of the whole text", () => {
    const blanks = emptyBlanks(2);
    blanks[0]!.text = "大";
    expect(joined(["今日", "雪", "。"], blanks)).toBe("今日大雪。");
  });
});
