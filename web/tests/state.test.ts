import { describe, expect, it, vi } from "vitest";

const kept = new Map<string, string>();
vi.stubGlobal("localStorage", {
  getItem: (name: string) => kept.get(name) ?? null,
  setItem: (name: string, value: string) => {
    if (value.length > 100_000) throw new DOMException("full", "QuotaExceededError");
    kept.set(name, value);
  },
});

const { latestTurns, loadTurns, saveTurns, turnsOf } = await import("../src/state/chatHistory");
const { checkedValue, defaultSampling, samplingFields, samplingOf } = await import("../src/state/sampling");
const { UndoHistory } = await import("../src/text/undo");
type Turn = import("../src/state/chatHistory").Turn;

const turn = (role: Turn["role"], content: string): Turn => ({ role, content });

describe("the conversation", () => {
  it("comes back as it was kept", () => {
    const turns: Turn[] = [turn("user", "你好"), { ...turn("assistant", "<b>好</b>"), model: "m", isPartial: true }];
    expect(saveTurns(turns)).toBe(true);
    expect(loadTurns()).toEqual(turns);
  });

  it("is kept without thoughts, and without an answer that is nothing else", () => {
    const asked = turn("user", "6 * 7?");
    const thoughts = "hm";
    saveTurns([asked, { ...turn("assistant", "42"), thoughts }, asked, { ...turn("assistant", ""), thoughts }]);
    expect(loadTurns()).toEqual([asked, turn("assistant", "42"), asked]);
  });

  it("is empty where something else was kept", () => {
    kept.set("martlet.chat", "{not json");
    expect(loadTurns()).toEqual([]);
    expect(turnsOf({ role: "user" })).toEqual([]);
    expect(turnsOf([null, 3, { role: "system", content: "x" }, { role: "user", content: 3 }])).toEqual([]);
    expect(turnsOf([{ ...turn("assistant", "好"), model: 3 }])).toEqual([turn("assistant", "好")]);
  });

  it("says when it could not be kept", () => {
    expect(saveTurns([turn("user", "字".repeat(200_000))])).toBe(false);
  });

  it("drops the oldest turns, and begins with the user", () => {
    const turns = [turn("user", "aaaa"), turn("assistant", "bbbb"), turn("user", "cccc"), turn("assistant", "dddd")];
    expect(latestTurns(turns, 12)).toEqual(turns.slice(2));
    expect(latestTurns(turns, 16)).toEqual(turns);
    expect(latestTurns(turns, 3)).toEqual([]);
  });
});

describe("sampling settings", () => {
  const defaults = defaultSampling("fill");

  it("send nothing that the model may decide", () => {
    expect(samplingFields(defaults)).toEqual({ max_tokens: 64 });
    expect(samplingFields(defaultSampling("chat"))).toEqual({});
    expect(samplingFields({ ...defaults, temperature: 0, seed: 7 })).toEqual({ temperature: 0, max_tokens: 64, seed: 7 });
  });

  it("are kept within their range", () => {
    expect(checkedValue("temperature", 9)).toBe(2);
    expect(checkedValue("top_k", 4.6)).toBe(5);
    expect(checkedValue("max_tokens", 20_000)).toBe(20_000);
    expect(checkedValue("top_p", Number.NaN)).toBeNull();
    expect(checkedValue("seed", "7")).toBeNull();
  });

  it("come back from storage, checked", () => {
    expect(samplingOf({ temperature: -1, max_tokens: "x", extra: 3 }, defaults)).toEqual({
      ...defaults,
      temperature: 0,
      max_tokens: null,
    });
    expect(samplingOf("broken", defaults)).toEqual(defaults);
  });
});

describe("undo", () => {
  it("takes back a pick, and typing in one go at once", () => {
    const history = new UndoHistory("话说");
    history.type("话说那", 0);
    history.type("话说那日", 100);
    history.set("话说那日大雪");
    expect([history.undo(), history.undo()]).toEqual(["话说那日", "话说"]);
    expect(history.canUndo).toBe(false);
    expect([history.redo(), history.redo(), history.redo()]).toEqual(["话说那日", "话说那日大雪", "话说那日大雪"]);
  });

  it("begins a new step after a pause, and forgets what was undone when something is typed", () => {
    const history = new UndoHistory("");
    history.type("a", 0);
    history.type("ab", 5000);
    expect(history.undo()).toBe("a");
    history.type("ac", 6000);
    expect(history.canRedo).toBe(false);
    expect(history.undo()).toBe("a");
  });

  it("remembers no more than its limit", () => {
    const history = new UndoHistory("0", 2);
    for (const text of ["1", "2", "3"]) history.set(text);
    expect([history.undo(), history.undo(), history.undo()]).toEqual(["2", "1", "1"]);
  });
});
