import { ref, watch } from "vue";

import { readStored, writeStored } from "./storage";

/** "auto" leaves it to the model whether it thinks before it answers. */
export const THINKING = ["auto", "on", "off"] as const;
export type Thinking = (typeof THINKING)[number];

export const thinking = ref<Thinking>(THINKING.find((name) => name === readStored("chat.thinking")) ?? "auto");
watch(thinking, (value) => writeStored("chat.thinking", value));

const storedSystem = readStored("chat.system");
/** What models are told before a conversation, where they take that. */
export const system = ref(typeof storedSystem === "string" ? storedSystem : "");
watch(system, (value) => writeStored("chat.system", value));
