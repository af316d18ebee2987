import type { ChatControl, ChatMessage, ModelStatus } from "../api/types";
import type { ShownRequest } from "../snippets/snippets";
import type { Turn } from "../state/chatHistory";
import type { Thinking } from "../state/chatSettings";

/** What is said beside the turns; what the model does not take is not sent. */
export interface ChatWords {
  system: string;
  thinking: Thinking;
  sampling: Record<string, number>;
}

/** The request for an answer to some turns. */
export function chatRequest(model: ModelStatus, turns: readonly Turn[], words: ChatWords): ShownRequest {
  const takes = (control: ChatControl): boolean => model.chat_controls?.includes(control) ?? false;
  const isSet = takes("thinking") && words.thinking !== "auto";
  const body = {
    model: model.name,
    messages: messagesOf(turns, takes("system") ? words.system.trim() : ""),
    ...words.sampling,
    ...(isSet ? { chat_template_kwargs: { enable_thinking: words.thinking === "on" } } : {}),
    stream: true,
    stream_options: { include_usage: true },
  };
  return { path: "/v1/chat/completions", body };
}

/**
 * The turns as messages, without thoughts. Many templates want the two sides to alternate, so a message that got
 * no answer becomes one with the next.
 */
export function messagesOf(turns: readonly Turn[], system: string): ChatMessage[] {
  const messages: ChatMessage[] = system === "" ? [] : [{ role: "system", content: system }];
  for (const { role, content } of turns) {
    const last = messages.at(-1);
    if (content === "") continue;
    if (last?.role === role) last.content += `\n${content}`;
    else messages.push({ role, content });
  }
  return messages;
}
