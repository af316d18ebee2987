import type { Alternative, FilledBlank } from "../api/types";

/** A blank of the result while it is written and afterwards. */
export interface ShownBlank {
  text: string;
  state: "waiting" | "writing" | "done";
  /** What may stand here, the answer first; distinct texts. */
  options: Alternative[];
}

export function emptyBlanks(count: number): ShownBlank[] {
  return Array.from({ length: count }, () => ({ text: "", state: "waiting", options: [] }));
}

/** The answer and its alternatives, then what was there before; the first of equal texts counts. */
export function optionsOf(filled: FilledBlank, earlier: readonly Alternative[] = []): Alternative[] {
  const options = [filled, ...(filled.alternatives ?? []), ...earlier];
  const texts = options.map((option) => option.text);
  return options
    .filter((option, i) => texts.indexOf(option.text) === i)
    .map(({ text, probability }) => ({ text, probability }));
}

/** A whole text from the parts around its blanks and the answers. */
export function joined(pieces: readonly string[], blanks: readonly ShownBlank[]): string {
  return pieces.map((piece, i) => piece + (blanks[i]?.text ?? "")).join("");
}
