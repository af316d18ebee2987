import { execFileSync } from "node:child_process";
import { describe, expect, it } from "vitest";

import { curlSnippet, pythonLiteral, pythonSnippet, shellQuoted } from "../src/snippets/snippets";

const ORIGIN = "http://127.0.0.1:8000";
const NASTY = "it's \"quoted\" $HOME `id` \\n\n第二行 🙂 </script>";
const fill = { path: "/v1/fill", body: { model: "cpm2-mini", text: NASTY, alternatives: 3, stream: true } };
const chat = {
  path: "/v1/chat/completions",
  body: { model: "eva-mini", messages: [{ role: "user", content: NASTY }], top_k: 40, temperature: 0.5, stream: true },
};

const run = (program: string, args: string[]): string => execFileSync(program, args, { encoding: "utf-8" });

/** The arguments that a shell gives to curl. */
function curlArguments(snippet: string): string[] {
  const script = `curl() { for word do printf '%s\\0' "$word"; done; }; MARTLET_API_KEY=k\n${snippet}`;
  return run("sh", ["-c", script]).split("\0").slice(0, -1);
}

describe("a curl command", () => {
  it("gives the request to curl exactly, whatever the text holds", () => {
    const args = curlArguments(curlSnippet(ORIGIN, fill, false));
    expect(args.slice(0, 2)).toEqual(["-N", `${ORIGIN}/v1/fill`]);
    expect(JSON.parse(args.at(-1)!)).toEqual(fill.body);
    expect(args).not.toContain("Authorization: Bearer k");
  });

  it("takes the key from the environment", () => {
    expect(curlArguments(curlSnippet(ORIGIN, fill, true))).toContain("Authorization: Bearer k");
  });

  it("without a body is a GET", () => {
    expect(curlSnippet(ORIGIN, { path: "/api/status", body: null }, false)).toBe(`curl ${ORIGIN}/api/status`);
  });

  it("quotes for the shell", () => {
    expect(shellQuoted("a'b")).toBe(`'a'\\''b'`);
  });
});

describe("a Python snippet", () => {
  it("writes values as Python reads them", () => {
    const value = { a: [1, -2.5, true, null], b: { [NASTY]: NASTY }, c: [], d: "x".repeat(90) };
    const script = "import ast, json, sys; print(json.dumps(ast.literal_eval(sys.argv[1])))";
    expect(JSON.parse(run("python3", ["-c", script, pythonLiteral(value)]))).toEqual(value);
  });

  it.each([
    [fill, true],
    [fill, false],
    [chat, true],
    [chat, false],
    [{ path: "/api/status", body: null }, true],
    [{ path: "/v1/completions", body: { model: "m", prompt: NASTY, n: 3, stream: true } }, false],
  ])("can be compiled: %j, key %j", (request, needsKey) => {
    run("python3", ["-c", "import sys; compile(sys.argv[1], 'snippet', 'exec')", pythonSnippet(ORIGIN, request, needsKey)]);
  });

  it("uses the openai package, with what it does not know in extra_body", () => {
    const text = pythonSnippet(ORIGIN, chat, false);
    expect(text).toContain(`OpenAI(base_url="${ORIGIN}/v1"`);
    expect(text).toContain('extra_body={"top_k": 40}');
    expect(text).toContain("    temperature=0.5,\n");
  });

  it("asks for a filling in one piece", () => {
    const text = pythonSnippet(ORIGIN, fill, false);
    expect(text).toContain("requests.post(");
    expect(text).not.toContain("stream");
  });
});
