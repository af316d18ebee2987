import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";

import { getJson, postStream, storeKey } from "../src/api/client";
import { ApiError, errorIn, retryAfterSeconds } from "../src/api/errors";

const kept = new Map<string, string>();

beforeEach(() => {
  kept.clear();
  vi.stubGlobal("sessionStorage", {
    getItem: (name: string) => kept.get(name) ?? null,
    setItem: (name: string, value: string) => kept.set(name, value),
    removeItem: (name: string) => kept.delete(name),
  });
});

afterEach(() => vi.unstubAllGlobals());

function answering(body: BodyInit | null, init: ResponseInit = {}): ReturnType<typeof vi.fn> {
  const fetching = vi.fn(() => Promise.resolve(new Response(body, init)));
  vi.stubGlobal("fetch", fetching);
  return fetching;
}

async function collected(signal = new AbortController().signal) {
  const chunks: unknown[] = [];
  const positions: number[] = [];
  const done = postStream<unknown>("/v1/fill", { text: "__" }, {
    signal,
    onChunk: (chunk) => chunks.push(chunk),
    onPosition: (position) => positions.push(position),
  });
  const error = await done.then(() => null, (problem: unknown) => problem);
  return { chunks, positions, error };
}

describe("a streamed answer", () => {
  it("hands on positions and chunks until the end", async () => {
    answering(': position 2\n\ndata: {"a":1}\n\ndata: {"a":2}\n\ndata: [DONE]\n\n');
    expect(await collected()).toEqual({ chunks: [{ a: 1 }, { a: 2 }], positions: [2], error: null });
  });

  it("that ends without saying so has broken off", async () => {
    answering('data: {"a":1}\n\n');
    const { chunks, error } = await collected();
    expect(chunks).toEqual([{ a: 1 }]);
    expect((error as ApiError).code).toBe("broken_off");
  });

  it("ends with the error that it tells of", async () => {
    answering('data: {"error":{"message":"out of memory","code":"oom"}}\n\ndata: [DONE]\n\n');
    expect((await collected()).error).toMatchObject({ message: "out of memory", code: "oom" });
  });

  it("that is refused gives the reason and when to come back", async () => {
    const body = JSON.stringify({ error: { message: "the queue is full", code: "overloaded" } });
    answering(body, { status: 429, headers: { "Retry-After": "7" } });
    expect((await collected()).error).toMatchObject({ status: 429, message: "the queue is full", retryAfterSeconds: 7 });
  });

  it("that nobody gives is unreachable", async () => {
    vi.stubGlobal("fetch", () => Promise.reject(new TypeError("network")));
    expect((await collected()).error).toMatchObject({ status: 0, code: "unreachable" });
  });
});

describe("a request", () => {
  it("carries the key of this tab, and none without one", async () => {
    const fetching = answering("{}");
    await getJson("/api/status");
    storeKey("s3cret");
    answering("{}");
    const second = answering("{}");
    await getJson("/api/status");
    const headersOf = (call: ReturnType<typeof vi.fn>) => (call.mock.calls[0]![1] as RequestInit).headers as Headers;
    expect(headersOf(fetching).get("Authorization")).toBeNull();
    expect(headersOf(second).get("Authorization")).toBe("Bearer s3cret");
  });
});

describe("an error", () => {
  it("is found in every form that servers write", () => {
    expect(errorIn({ error: { message: "no", code: 503 } })).toEqual({ message: "no", code: "503" });
    expect(errorIn({ error: "no" })).toEqual({ message: "no", code: null });
    expect(errorIn({ choices: [] })).toBeNull();
    expect(errorIn(null)).toBeNull();
  });

  it.each([
    ["12", 12],
    ["1.5", 1.5],
    ["-3", 0],
    ["Thu, 01 Jan 1970 00:00:30 GMT", 20],
    ["soon", null],
    [null, null],
  ])("Retry-After %j is %j seconds", (header, seconds) => {
    expect(retryAfterSeconds(header, 10_000)).toBe(seconds);
  });
});
