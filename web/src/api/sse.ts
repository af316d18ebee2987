/** What a server-sent event stream holds: events and comments. */
export type SseItem = { kind: "data"; data: string } | { kind: "comment"; text: string };

/**
 * Takes an event stream in pieces that may end anywhere, also within a character or between CR and LF.
 * Field names other than `data` are of no use here and are passed over.
 */
export class SseParser {
  private readonly decoder = new TextDecoder("utf-8");
  private rest = "";
  private lines: string[] = [];
  private skipLineFeed = false;

  /** The items that are complete with these bytes. */
  push(bytes: Uint8Array): SseItem[] {
    return this.take(this.decoder.decode(bytes, { stream: true }));
  }

  private take(text: string): SseItem[] {
    const items: SseItem[] = [];
    let buffer = this.rest + text;
    if (this.skipLineFeed && buffer.startsWith("\n")) buffer = buffer.slice(1);
    if (text !== "") this.skipLineFeed = false;
    let start = 0;
    for (let at = 0; at < buffer.length; at++) {
      const char = buffer[at];
      if (char !== "\n" && char !== "\r") continue;
      this.line(buffer.slice(start, at), items);
      if (char === "\r") {
        if (buffer[at + 1] === "\n") at++;
        else if (at + 1 === buffer.length) this.skipLineFeed = true;
      }
      start = at + 1;
    }
    this.rest = buffer.slice(start);
    return items;
  }

  private line(line: string, items: SseItem[]): void {
    if (line === "") {
      if (this.lines.length > 0) items.push({ kind: "data", data: this.lines.join("\n") });
      this.lines = [];
    } else if (line.startsWith(":")) {
      items.push({ kind: "comment", text: line.slice(1).trim() });
    } else if (line.startsWith("data:")) {
      this.lines.push(line.slice(line[5] === " " ? 6 : 5));
    } else if (line === "data") {
      this.lines.push("");
    }
  }
}

/** The place in the queue that a heartbeat comment tells, or null. */
export function queuePosition(comment: string): number | null {
  const found = /\b(?:position|queue)\D{0,3}(\d{1,9})/i.exec(comment);
  return found ? Number(found[1]) : null;
}
