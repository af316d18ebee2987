import { MODEL_FIELDS_OF_OPENAI } from "./fields";

/** A request as it is sent; without a body it is a GET. */
export interface ShownRequest {
  path: string;
  body: Record<string, unknown> | null;
}

const KEY_VARIABLE = "MARTLET_API_KEY";

/** One argument for a POSIX shell, whatever it holds. */
export function shellQuoted(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/** A curl command that sends the request. The key itself is never in it. */
export function curlSnippet(origin: string, request: ShownRequest, needsKey: boolean): string {
  const { path, body } = request;
  const lines = [
    `curl ${body?.["stream"] === true ? "-N " : ""}${origin}${path}`,
    ...(body ? [`-H 'Content-Type: application/json'`] : []),
    ...(needsKey ? [`-H "Authorization: Bearer $${KEY_VARIABLE}"`] : []),
    ...(body ? [`-d ${shellQuoted(JSON.stringify(body, null, 2))}`] : []),
  ];
  return lines.join(" \\\n  ");
}

/** A value of JSON as Python writes it. */
export function pythonLiteral(value: unknown, indent = 0): string {
  const inner = " ".repeat(indent + 4);
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value === "number") return String(value);
  if (typeof value === "string") return pythonString(value);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const parts = Array.isArray(value)
    ? value.map((item) => pythonLiteral(item, indent + 4))
    : Object.entries(value as object).map(
        ([key, item]) => `${pythonString(key)}: ${pythonLiteral(item, indent + 4)}`,
      );
  const line = open + parts.join(", ") + close;
  if (line.length <= 60 && !line.includes("\n")) return line;
  return `${open}\n${parts.map((part) => `${inner}${part},\n`).join("")}${" ".repeat(indent)}${close}`;
}

/** JSON's escapes are Python's, except for surrogates, which JSON.stringify writes only when they stand alone. */
function pythonString(text: string): string {
  return JSON.stringify(text);
}

/** Python that sends the request: with the openai package where it knows the route, else with requests. */
export function pythonSnippet(origin: string, request: ShownRequest, needsKey: boolean): string {
  const call = OPENAI_CALLS[request.path];
  return call && request.body
    ? openaiSnippet(origin, request.body, call, needsKey)
    : requestsSnippet(origin, request, needsKey);
}

const OPENAI_CALLS: Record<string, { method: string; piece: string }> = {
  "/v1/chat/completions": { method: "chat.completions", piece: 'chunk.choices[0].delta.content or ""' },
  "/v1/completions": { method: "completions", piece: "chunk.choices[0].text" },
};

function openaiSnippet(
  origin: string,
  body: Record<string, unknown>,
  call: { method: string; piece: string },
  needsKey: boolean,
): string {
  const known = Object.entries(body).filter(([name]) => MODEL_FIELDS_OF_OPENAI.has(name));
  const extra = Object.entries(body).filter(([name]) => !MODEL_FIELDS_OF_OPENAI.has(name));
  const fields = known.map(([name, value]) => `    ${name}=${pythonLiteral(value, 4)},`);
  if (extra.length > 0) fields.push(`    extra_body=${pythonLiteral(Object.fromEntries(extra), 4)},`);
  const numChoices = typeof body["n"] === "number" ? body["n"] : 1;
  const shown = numChoices > 1 ? `chunk.choices[0].index, ${call.piece}` : `${call.piece}, end="", flush=True`;
  return [
    ...(needsKey ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${origin}/v1", api_key=${needsKey ? `os.environ["${KEY_VARIABLE}"]` : '"none"'})`,
    `stream = client.${call.method}.create(`,
    ...fields,
    ")",
    "for chunk in stream:",
    "    if chunk.choices:",
    `        print(${shown})`,
  ].join("\n");
}

function requestsSnippet(origin: string, request: ShownRequest, needsKey: boolean): string {
  // The whole answer at once is what a script wants, so the snippet does not stream.
  const body = request.body && { ...request.body };
  delete body?.["stream"];
  return [
    ...(needsKey ? ["import os", ""] : []),
    "import requests",
    "",
    `answer = requests.${body ? "post" : "get"}(`,
    `    "${origin}${request.path}",`,
    ...(needsKey ? [`    headers={"Authorization": f"Bearer {os.environ['${KEY_VARIABLE}']}"},`] : []),
    ...(body ? [`    json=${pythonLiteral(body, 4)},`] : []),
    ")",
    "answer.raise_for_status()",
    `print(answer.json()${body ? '["text"]' : ""})`,
  ].join("\n");
}
