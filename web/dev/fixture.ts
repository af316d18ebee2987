import type { IncomingMessage, ServerResponse } from "node:http";
import type { Plugin } from "vite";

/**
 * Answers of the HTTP interface for work on the pages without a server. Development only: the built app has
 * nothing of it. The model "cpm2" is a plan of an 11B model on a 6 GiB card, "cpm2-mini" one on the CPU; the one with a long name thinks.
 */
export function fixtureServer(): Plugin {
  return {
    name: "martlet-fixture",
    apply: "serve",
    configureServer(server) {
      server.middlewares.use((request, response, next) => {
        const route = ROUTES[(request.url ?? "").split("?")[0] ?? ""];
        if (route) void route(request, response);
        else next();
      });
    },
  };
}

type Route = (request: IncomingMessage, response: ServerResponse) => void | Promise<void>;
interface Body {
  model: string;
  text?: string;
  pieces?: string[];
  alternatives?: number;
  n?: number;
  max_tokens?: number;
  chat_template_kwargs?: { enable_thinking?: boolean };
}

const ANSWERS = "却说众人听了无不称奇便一齐上前拜见老爷笑道你等且起来说话只见那人身长八尺面如冠玉";
const running = { count: 0 };
const MIB = 1 << 20;
const THINKER = "DeepSeek-R1-0528-Qwen3-8B:DeepSeek-R1-0528-Qwen3-8B-Q4_K_M.gguf";

const ROUTES: Record<string, Route> = {
  "/api/status": (_, response) => json(response, status()),
  "/api/plan": (_, response) =>
    json(response, { models: { cpm2: gpuPlan(), "cpm2-mini": cpuPlan(), "cpm1-mini": cpuPlan(), "eva-mini": cpuPlan(), [THINKER]: gpuPlan() } }),
  "/v1/fill": fill,
  "/v1/chat/completions": (request, response) =>
    stream(request, response, 1, (_, text, at, body) => {
      const isThought = body.model === THINKER && at < 30 && body.chat_template_kwargs?.enable_thinking !== false;
      return { choices: [{ index: 0, delta: { [isThought ? "reasoning_content" : "content"]: text }, finish_reason: null }] };
    }),
  "/v1/completions": (request, response) =>
    stream(request, response, 3, (index, text) => ({ choices: [{ index, text, finish_reason: null }] })),
};

function json(response: ServerResponse, value: unknown): void {
  response.setHeader("Content-Type", "application/json");
  response.end(JSON.stringify(value));
}

async function bodyOf(request: IncomingMessage): Promise<Body> {
  let text = "";
  for await (const chunk of request) text += String(chunk);
  return JSON.parse(text) as Body;
}

const wait = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

async function open(response: ServerResponse): Promise<(value: unknown) => boolean> {
  response.setHeader("Content-Type", "text/event-stream; charset=utf-8");
  response.write(": ping queue=2\n\n");
  await wait(400);
  return (value) => response.write(`data: ${typeof value === "string" ? value : JSON.stringify(value)}\n\n`);
}

async function stream(
  request: IncomingMessage,
  response: ServerResponse,
  num: number,
  chunk: (index: number, text: string, at: number, body: Body) => object,
): Promise<void> {
  const body = await bodyOf(request);
  const write = await open(response);
  const length = Math.min(body.max_tokens ?? 40, 90);
  running.count += num;
  for (let at = 0; at < length && !response.destroyed; at++) {
    for (let index = 0; index < num; index++) write(chunk(index, ANSWERS[(at * (index + 3)) % ANSWERS.length]!, at, body));
    await wait(40);
  }
  running.count -= num;
  write({ choices: [], usage: { prompt_tokens: 9, completion_tokens: num * length }, timings: { tokens_per_second: 24.6 } });
  write("[DONE]");
  response.end();
}

async function fill(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const body = await bodyOf(request);
  const pieces = body.pieces ?? body.text!.split(/<blank>|<span>|[_＿]{2,}/);
  const write = await open(response);
  running.count++;
  const blanks = [];
  for (let index = 0; index + 1 < pieces.length && !response.destroyed; index++) {
    const start = Math.floor(Math.random() * 30);
    const text = ANSWERS.slice(start, start + 3 + (index % 3) * 2);
    for (const character of text) {
      write({ object: "fill.chunk", blank: index, text: character });
      await wait(60);
    }
    const alternatives = Array.from({ length: body.alternatives ?? 0 }, (_, i) => ({
      text: ANSWERS.slice(start + i + 1, start + i + 4),
      probability: 0.03 / (i + 1) ** 2,
    }));
    blanks.push({ index, text, closed: true, probability: 0.0412, alternatives });
  }
  running.count--;
  write({ object: "fill", text: "", blanks, usage: { prompt_tokens: 30, completion_tokens: 14 }, timings: { tokens_per_second: 24.6 } });
  write("[DONE]");
  response.end();
}

function status(): object {
  const model = (name: string, tasks: string[], device: string) => ({
    name,
    state: "ready",
    failure: null,
    family: name === THINKER ? "qwen3" : name.split("-")[0],
    tasks,
    thinks: name === THINKER,
    chat_controls: name === THINKER ? ["system", "thinking"] : [],
    num_slots: 8,
    num_running: Math.min(8, running.count),
    num_waiting: Math.max(0, running.count - 8),
    cache_tokens: running.count * 60,
    cache_capacity_tokens: 4096,
    tokens_per_second: running.count * 20 + (running.count ? Math.random() * 8 : 0),
    predicted_tokens_per_second: device === "cuda" ? 2.4 : null,
    output_tokens_total: 1234,
    rss_bytes: 400 * MIB,
    gpu_bytes: device === "cuda" ? 5900 * MIB : null,
    num_weights: device === "cuda" ? 8.2e9 : 24e6,
    weight_type: name === THINKER ? "int4" : "int8",
    weight_bytes: device === "cuda" ? 11_000 * MIB : 24 * MIB,
    load_seconds: 1.3,
    num_restarts: 0,
    device,
  });
  return {
    version: "0.0.0",
    uptime_seconds: 754,
    is_draining: false,
    host: {
      total_ram_bytes: 24_000 * MIB,
      available_ram_bytes: 9_000 * MIB,
      num_cores: 8,
      gpus: [{ name: "GTX 1060", total_bytes: 6144 * MIB, used_bytes: 6000 * MIB }],
    },
    models: [
      model("cpm2", ["fill", "write"], "cuda"),
      model("cpm2-mini", ["fill", "write"], "cpu"),
      model("cpm1-mini", ["write"], "cpu"),
      model("eva-mini", ["chat"], "cpu"),
      model(THINKER, ["chat", "write"], "cuda"),
    ],
  };
}

function cpuPlan(): object {
  const blocks = (computed: string[]) =>
    ["fixed", ...numbered("encoder", 6), ...numbered("decoder", 6)].map((block) => ({
      block,
      nbytes: block === "fixed" ? 13 * MIB : MIB,
      tier: "ram",
      computed_on: block === "fixed" || computed.some((stack) => block.startsWith(stack)) ? "cpu" : null,
    }));
  return {
    ...planSizes("cpu"),
    phases: { encode: blocks(["encoder"]), prefill: blocks(["decoder"]), decode: blocks(["decoder"]) },
  };
}

function gpuPlan(): object {
  const names = ["fixed", ...numbered("encoder", 24), ...numbered("decoder", 24), ...numbered("decoder", 24, ".once")];
  const blocks = (computed: (block: string) => boolean) =>
    names.map((block, i) => ({
      block,
      nbytes: (block.endsWith("once") ? 33 : 220) * MIB,
      tier: i % 5 === 2 || block.startsWith("encoder") ? "ram" : "gpu",
      computed_on: block === "fixed" || computed(block) ? "gpu" : null,
    }));
  return {
    ...planSizes("cuda"),
    phases: {
      encode: blocks((block) => block.startsWith("encoder")),
      prefill: blocks((block) => block.startsWith("decoder")),
      decode: blocks((block) => block.startsWith("decoder") && !block.endsWith("once")),
    },
  };
}

function numbered(stack: string, count: number, end = ""): string[] {
  return Array.from({ length: count }, (_, i) => `${stack}.${i}${end}`);
}

function planSizes(device: string): object {
  const isGpu = device === "cuda";
  return {
    device,
    description: isGpu ? "a made-up plan for a GPU of 6 GiB" : "all 13 blocks, 23.3 MiB, in RAM; computed on the CPU",
    kv_cache_bytes: (isGpu ? 300 : 9) * MIB,
    workspace_bytes: 250 * MIB,
    context_bytes: 0,
    num_slots: isGpu ? 2 : 0,
    slot_bytes: isGpu ? 220 * MIB : 0,
    streamed_bytes: { encode: isGpu ? 5280 * MIB : 0, prefill: isGpu ? 2300 * MIB : 0, decode: isGpu ? 1100 * MIB : 0 },
  };
}
