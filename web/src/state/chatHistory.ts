import { readStored, writeStored } from "./storage";

export interface Turn {
  role: "user" | "assistant";
  content: string;
  /** The model that answered. */
  model?: string;
  /** What the model thought before its answer; gone with the page, and never sent. */
  thoughts?: string;
  /** The answer was stopped, or broke off, before its end. */
  isPartial?: boolean;
}

const NAME = "chat";
/** Well below what browsers keep for a site (about five million characters). */
const MAX_CHARACTERS = 1_000_000;

/** The turns of a value, without thoughts; what is no turn is left out. */
export function turnsOf(value: unknown): Turn[] {
  if (!Array.isArray(value)) return [];
  return value.flatMap((item: unknown): Turn[] => {
    if (typeof item !== "object" || item === null || !("role" in item) || !("content" in item)) return [];
    const { role, content } = item;
    if ((role !== "user" && role !== "assistant") || typeof content !== "string") return [];
    const turn: Turn = { role, content };
    if ("model" in item && typeof item.model === "string") turn.model = item.model;
    if ("isPartial" in item && item.isPartial === true) turn.isPartial = true;
    return [turn];
  });
}

/** The latest turns that have room, beginning with one of the user. */
export function latestTurns(turns: readonly Turn[], maxCharacters = MAX_CHARACTERS): Turn[] {
  let room = maxCharacters;
  let first = turns.length;
  while (first > 0 && turns[first - 1]!.content.length <= room) {
    first--;
    room -= turns[first]!.content.length;
  }
  if (first > 0) while (first < turns.length && turns[first]!.role !== "user") first++;
  return turns.slice(first);
}

export function loadTurns(): Turn[] {
  return turnsOf(readStored(NAME));
}

/** Whether they could be kept. An answer of which nothing was written yet is none. */
export function saveTurns(turns: readonly Turn[]): boolean {
  const kept = turnsOf(turns).filter(({ content }) => content !== "");
  return writeStored(NAME, latestTurns(kept));
}
