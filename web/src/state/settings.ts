import { computed, ref, watch } from "vue";

import type { Task } from "../api/types";
import { languageFor, type Language } from "../i18n/language";
import { readStored, writeStored } from "./storage";

export type Theme = "auto" | "light" | "dark";
export const THEMES: readonly Theme[] = ["auto", "light", "dark"];

function storedLanguage(): Language | null {
  const value = readStored("language");
  return value === "en" || value === "zh" ? value : null;
}

function storedTheme(): Theme {
  return THEMES.find((theme) => theme === readStored("theme")) ?? "auto";
}

function storedModels(): Partial<Record<Task, string>> {
  const value = readStored("models");
  return typeof value === "object" && value !== null && !Array.isArray(value) ? value : {};
}

const chosenLanguage = ref(storedLanguage());
export const theme = ref(storedTheme());
export const chosenModels = ref(storedModels());

export const language = computed<Language>(() => chosenLanguage.value ?? languageFor(navigator.languages));

export function chooseLanguage(value: Language): void {
  chosenLanguage.value = value;
  writeStored("language", value);
}

export function chooseModel(task: Task, name: string): void {
  chosenModels.value = { ...chosenModels.value, [task]: name };
  writeStored("models", chosenModels.value);
}

watch(theme, (value) => writeStored("theme", value));
watch(
  theme,
  (value) => {
    if (value === "auto") delete document.documentElement.dataset["theme"];
    else document.documentElement.dataset["theme"] = value;
  },
  { immediate: true },
);
watch(language, (value) => (document.documentElement.lang = value === "zh" ? "zh-CN" : "en"), {
  immediate: true,
});
