/** A blank is written `<blank>`, `<span>`, or as two or more underscores of any width, as the server reads it. */
const BLANK = /<blank>|<span>|[_＿]{2,}/g;

/** What is written where a button or shortcut sets a blank. */
export const BLANK_MARK = "__";
export const MAX_BLANKS = 32;

export interface Segment {
  kind: "text" | "blank";
  text: string;
}

/** The text as written, cut into text and blanks; joining the texts of all segments gives it back. */
export function segmentsOf(text: string): Segment[] {
  const segments: Segment[] = [];
  let end = 0;
  for (const match of text.matchAll(BLANK)) {
    if (match.index > end) segments.push({ kind: "text", text: text.slice(end, match.index) });
    segments.push({ kind: "blank", text: match[0] });
    end = match.index + match[0].length;
  }
  if (end < text.length) segments.push({ kind: "text", text: text.slice(end) });
  return segments;
}

/** The parts of a text around its blanks: always one more than there are blanks. */
export function piecesOf(text: string): string[] {
  return text.split(BLANK);
}

export function countBlanks(text: string): number {
  return piecesOf(text).length - 1;
}

/**
 * How a request names its text: readable with `__` where that cannot be misread, else in pieces.
 * Pieces that come from a model may hold or touch underscores, which would become blanks.
 */
export function fillFields(pieces: string[]): { text: string } | { pieces: string[] } {
  const text = pieces.join(BLANK_MARK);
  const again = piecesOf(text);
  const isSame = again.length === pieces.length && again.every((piece, i) => piece === pieces[i]);
  return isSame ? { text } : { pieces };
}

/** The pieces of a request for one blank again, with the other answers put in place as text. */
export function piecesForOne(pieces: readonly string[], answers: readonly string[], blank: number): string[] {
  const whole = (from: number, to: number): string => {
    let text = pieces[from] ?? "";
    for (let i = from; i < to; i++) text += (answers[i] ?? "") + (pieces[i + 1] ?? "");
    return text;
  };
  return [whole(0, blank), whole(blank + 1, pieces.length - 1)];
}

/** A blank put in place of the selection from start to end; underscores beside it get a space between. */
export function withBlank(text: string, start: number, end: number): { text: string; caret: number } {
  const before = text.slice(0, start);
  const after = text.slice(end);
  const mark =
    (/[_＿]$/.test(before) ? " " : "") + BLANK_MARK + (/^[_＿]/.test(after) ? " " : "");
  return { text: before + mark + after, caret: before.length + mark.length };
}
