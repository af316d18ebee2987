import { describe, expect, it } from "vitest";

import { chunkOf } from "../src/api/client";
import { ApiError } from "../src/api/errors";
import { SseParser, queuePosition, type SseItem } from "../src/api/sse";

const encoder = new TextEncoder();

/** The items of a stream that arrives in pieces of this many bytes. */
function parsed(text: string, size: number): SseItem[] {
  const bytes = encoder.encode(text);
  const parser = new SseParser();
  const items: SseItem[] = [];
  for (let at = 0; at < bytes.length; at += size) items.push(...parser.push(bytes.slice(at, at + size)));
  return items;
}

const data = (text: string): SseItem => ({ kind: "data", data: text });

describe("an event stream", () => {
  const stream = ': ping position=3\n\ndata: {"text":"天气很好🙂"}\n\ndata: [DONE]\n\n';
  const items = [{ kind: "comment", text: "ping position=3" }, data('{"text":"天气很好🙂"}'), data("[DONE]")];

  it.each([1, 2, 3, 5, 7, 1000])("is the same in pieces of %i bytes", (size) => {
    expect(parsed(stream, size)).toEqual(items);
    expect(parsed(stream.replaceAll("\n", "\r\n"), size)).toEqual(items);
    expect(parsed(stream.replaceAll("\n", "\r"), size)).toEqual(items);
    expect(parsed("\uFEFF" + stream, size)).toEqual(items);
  });

  it("joins the data lines of one event", () => {
    expect(parsed("data: a\ndata:b\ndata\n\n", 4)).toEqual([data("a\nb\n")]);
  });

  it("takes one space off and keeps the rest", () => {
    expect(parsed("data:  a \n\n", 100)).toEqual([data(" a ")]);
  });

  it("passes over fields that it does not know and events without data", () => {
    expect(parsed("event: x\nid: 1\nretry: 5\n\ndataset: no\n\n", 3)).toEqual([]);
  });

  it("keeps an event back that is not complete", () => {
    const parser = new SseParser();
    expect(parser.push(encoder.encode('data: {"a":1}\n'))).toEqual([]);
    expect(parser.push(encoder.encode("\n"))).toEqual([data('{"a":1}')]);
  });
});

describe("an event", () => {
  it("is the value of its JSON", () => {
    expect(chunkOf('{"text":"好"}')).toEqual({ text: "好" });
  });

  it("that tells of an error is thrown", () => {
    const event = '{"error":{"message":"the model has gone","type":"server_error","param":null,"code":"worker_lost"}}';
    expect(() => chunkOf(event)).toThrow(new ApiError("the model has gone", 200, "worker_lost"));
  });

  it("that is no JSON is an error of its own", () => {
    expect(() => chunkOf("<html>")).toThrow(ApiError);
  });
});

describe("a heartbeat", () => {
  it.each([
    ["ping", null],
    ["ping position=3", 3],
    ["position 12", 12],
    ["position: 0", 0],
    ["ping queue=2", 2],
    ["opposition 4", null],
  ])("%j tells %j", (comment, position) => {
    expect(queuePosition(comment)).toBe(position);
  });
});
