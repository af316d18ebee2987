import { language } from "../state/settings";
import { en } from "./en";
import { zh } from "./zh";

export type MessageKey = keyof typeof en;
const MESSAGES: Record<"en" | "zh", Record<MessageKey, string>> = { en, zh };

/** A message in the language of the page; {name} is replaced by values.name. */
export function t(key: MessageKey, values: Record<string, string | number> = {}): string {
  return filled(MESSAGES[language.value][key], values);
}

export function filled(message: string, values: Record<string, string | number>): string {
  return message.replace(/\{(\w+)\}/g, (whole, name: string) => String(values[name] ?? whole));
}
