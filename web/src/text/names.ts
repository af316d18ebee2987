/** Families by their names in configurations, as their makers write them. */
const FAMILIES: Record<string, string> = {
  bloom: "BLOOM",
  cpm1: "CPM-1",
  cpm2: "CPM-2",
  eva: "EVA",
  gemma: "Gemma",
  gemma2: "Gemma 2",
  gemma3: "Gemma 3",
  gemma3_text: "Gemma 3",
  glm: "GLM",
  glm4: "GLM-4",
  gpt2: "GPT-2",
  gpt_neox: "GPT-NeoX",
  gptj: "GPT-J",
  llama: "Llama",
  minicpm: "MiniCPM",
  minicpm3: "MiniCPM3",
  mistral: "Mistral",
  phi3: "Phi-3",
  qwen2: "Qwen2",
  qwen3: "Qwen3",
  t5: "T5",
};

/** A family for people; one that came later is called what it calls itself. */
export function familyName(family: string | null): string {
  return family === null ? "–" : (FAMILIES[family] ?? family);
}

/** A model's name in the parts between which a line may break: "Qwen/", "Qwen3-", "8B". */
export function nameParts(name: string): string[] {
  return name.match(/[^/:_-]*[/:_-]+|[^/:_-]+/g) ?? [];
}
