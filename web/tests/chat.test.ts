import { describe, expect, it, vi } from "vitest";
import { createSSRApp, type Component } from "vue";
import { renderToString } from "vue/server-renderer";

import type { ModelStatus } from "../src/api/types";
import { chatRequest, messagesOf, type ChatWords } from "../src/chat/request";
import type { Turn } from "../src/state/chatHistory";

vi.stubGlobal("localStorage", { getItem: () => null, setItem: () => undefined });
vi.stubGlobal("document", { documentElement: { dataset: {} } });
vi.stubGlobal("navigator", { languages: ["en"] });

const { default: ChatTurn } = await import("../src/chat/ChatTurn.vue");
const { default: ModelName } = await import("../src/shell/ModelName.vue");

const HOSTILE = "<img src=x onerror=alert(1)>";
const user = (content: string): Turn => ({ role: "user", content });
const model = (name: string, changes: Partial<ModelStatus>): ModelStatus => ({ name, ...changes }) as ModelStatus;
const thinker = model("Qwen3-8B", { chat_controls: ["system", "thinking"] });
const words: ChatWords = { system: " Be brief.\n", thinking: "off", sampling: { seed: 7 } };

describe("the request of a chat", () => {
  it("says what the model takes", () => {
    const { path, body } = chatRequest(thinker, [user("6 * 7?")], words);
    expect(path).toBe("/v1/chat/completions");
    expect(body).toEqual({
      model: "Qwen3-8B",
      messages: [
        { role: "system", content: "Be brief." },
        { role: "user", content: "6 * 7?" },
      ],
      seed: 7,
      chat_template_kwargs: { enable_thinking: false },
      stream: true,
      stream_options: { include_usage: true },
    });
    expect(chatRequest(thinker, [], { ...words, thinking: "on" }).body).toMatchObject({
      chat_template_kwargs: { enable_thinking: true },
    });
  });

  it.each([[null], [[]]])("says nothing that the model does not take: %j", (controls) => {
    const { body } = chatRequest(model("eva-mini", { chat_controls: controls }), [user("你好")], words);
    expect(body).toMatchObject({ messages: [user("你好")] });
    expect(body).not.toHaveProperty("chat_template_kwargs");
  });

  it("leaves thinking to the model, and the system out, where nothing is set", () => {
    const { body } = chatRequest(thinker, [user("6 * 7?")], { system: " ", thinking: "auto", sampling: {} });
    expect(body).toMatchObject({ messages: [user("6 * 7?")] });
    expect(body).not.toHaveProperty("chat_template_kwargs");
  });

  it("never has thoughts, and its two sides alternate", () => {
    const turns: Turn[] = [
      user("6 * 7?"),
      { role: "assistant", content: "42", thoughts: "hm" },
      user("Sure?"),
      { role: "assistant", content: "", thoughts: "hm", isPartial: true },
      user("Well?"),
    ];
    expect(messagesOf(turns, "")).toEqual([
      { role: "user", content: "6 * 7?" },
      { role: "assistant", content: "42" },
      { role: "user", content: "Sure?\nWell?" },
    ]);
  });
});

const render = (component: Component, props: object): Promise<string> =>
  renderToString(createSSRApp(component, { ...props }));
const turn = (changes: Partial<Turn>, isWriting = false): Promise<string> =>
  render(ChatTurn, {
    turn: { role: "assistant", content: "", ...changes },
    name: "Qwen3-8B",
    isWriting,
    isEditable: false,
  });

describe("a turn", () => {
  it("shows thoughts open while they arrive, and no answer yet", async () => {
    const html = await turn({ thoughts: "hm" }, true);
    expect(html).toMatch(/<details[^>]* open/);
    expect(html).toContain("Thinking …");
    expect(html).not.toContain("bubble");
    expect(html).not.toContain("no-answer");
  });

  it("shows thoughts closed beside the answer", async () => {
    const html = await turn({ thoughts: "hm", content: "42" }, true);
    expect(html).not.toMatch(/<details[^>]* open/);
    expect(html).toMatch(/bubble[^>]*>42</);
  });

  it("has neither thoughts nor words about them where the model does not think", async () => {
    expect(await turn({ content: "42" })).not.toMatch(/details|no-answer/);
    expect(await turn({}, true)).toContain("bubble");
  });

  it("says why there is no answer where thoughts took all, but not where it was stopped", async () => {
    expect(await turn({ thoughts: "hm" })).toContain("no-answer");
    const stopped = await turn({ thoughts: "hm", isPartial: true });
    expect(stopped).not.toContain("no-answer");
    expect(stopped).toContain("stopped");
  });

  it("keeps markup in thoughts and answers text", async () => {
    const html = await turn({ thoughts: HOSTILE, content: HOSTILE });
    expect(html).not.toContain("<img");
    expect(html.match(/&lt;img src=x onerror=alert\(1\)&gt;/g)).toHaveLength(2);
  });
});

it("the name of a model is whole, with places to break", async () => {
  const html = await render(ModelName, { name: "Qwen/Qwen3-8B" });
  expect(html.replaceAll(/ data-v-\w+|<!--[^>]*-->/g, "")).toMatch(/>Qwen\/<wbr>Qwen3-<wbr>8B<\/span>$/);
});
