import { reactive, watch } from "vue";

import type { Task } from "../api/types";
import { readStored, writeStored } from "./storage";

export const SAMPLING_FIELDS = [
  "temperature",
  "top_p",
  "top_k",
  "max_tokens",
  "seed",
  "repetition_penalty",
  "presence_penalty",
] as const;
export type SamplingField = (typeof SAMPLING_FIELDS)[number];

export interface Range {
  min: number;
  max: number;
  step: number;
}

/** What the pages offer; the server takes more. A seed has no slider. */
export const RANGES: Record<SamplingField, Range> = {
  temperature: { min: 0, max: 2, step: 0.05 },
  top_p: { min: 0.05, max: 1, step: 0.05 },
  top_k: { min: 0, max: 200, step: 1 },
  max_tokens: { min: 1, max: 32768, step: 1 },
  seed: { min: 0, max: 2 ** 31 - 1, step: 1 },
  repetition_penalty: { min: 1, max: 2, step: 0.05 },
  presence_penalty: { min: -2, max: 2, step: 0.1 },
};

/** Where a slider ends before its range does: most answers are short, and thoughts may be long. */
export const SLIDER_ENDS: Partial<Record<SamplingField, number>> = { max_tokens: 1024 };

/** A field that is null is left to the model, which knows what suits it. */
export type Sampling = Record<SamplingField, number | null>;

/** A chat ends where the model ends it: what one that thinks first needs, nobody can tell beforehand. */
const LENGTHS: Record<Task, number | null> = { fill: 64, chat: null, write: 80 };

export function defaultSampling(task: Task): Sampling {
  return {
    temperature: null,
    top_p: null,
    top_k: null,
    max_tokens: LENGTHS[task],
    seed: null,
    repetition_penalty: null,
    presence_penalty: null,
  };
}

/** A number within its range and, where only whole ones make sense, whole; null for what is no number. */
export function checkedValue(field: SamplingField, value: unknown): number | null {
  if (typeof value !== "number" || !Number.isFinite(value)) return null;
  const { min, max, step } = RANGES[field];
  const bounded = Math.min(max, Math.max(min, value));
  return step === 1 ? Math.round(bounded) : bounded;
}

export function samplingOf(value: unknown, defaults: Sampling): Sampling {
  if (typeof value !== "object" || value === null) return { ...defaults };
  const fields = value as Record<string, unknown>;
  const result = { ...defaults };
  for (const name of SAMPLING_FIELDS) if (name in fields) result[name] = checkedValue(name, fields[name]);
  return result;
}

/** The fields of a request. */
export function samplingFields(sampling: Sampling): Record<string, number> {
  const fields: Record<string, number> = {};
  for (const name of SAMPLING_FIELDS) {
    const value = sampling[name];
    if (value !== null) fields[name] = value;
  }
  return fields;
}

const kept: Partial<Record<Task, Sampling>> = {};

/** The settings of a page, kept over reloads. */
export function useSampling(task: Task): Sampling {
  const found = kept[task];
  if (found) return found;
  const name = `sampling.${task}`;
  const sampling = reactive(samplingOf(readStored(name), defaultSampling(task)));
  watch(sampling, (value) => writeStored(name, value));
  kept[task] = sampling;
  return sampling;
}
