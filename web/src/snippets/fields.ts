/** Fields that the openai package takes as arguments; others go through its extra_body. */
export const MODEL_FIELDS_OF_OPENAI: ReadonlySet<string> = new Set([
  "model",
  "messages",
  "prompt",
  "suffix",
  "max_tokens",
  "temperature",
  "top_p",
  "presence_penalty",
  "frequency_penalty",
  "seed",
  "stop",
  "n",
  "stream",
  "stream_options",
]);
