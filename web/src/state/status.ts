import { computed, ref, shallowRef, watch } from "vue";

import { getJson, storeKey, storedKey } from "../api/client";
import { ApiError } from "../api/errors";
import type { ModelStatus, PlanAnswer, ServerStatus, Task } from "../api/types";
import { page } from "./route";
import { chosenModels } from "./settings";

export type Connection = "connecting" | "connected" | "unreachable" | "locked";

export const status = shallowRef<ServerStatus | null>(null);
export const plans = shallowRef<PlanAnswer["models"]>({});
export const connection = ref<Connection>("connecting");
export const connectionError = ref("");
export const hasKey = ref(storedKey() !== "");

/** The speed of a model at a time of the page's clock. */
export interface SpeedSample {
  atSeconds: number;
  tokensPerSecond: number;
}

export const SPEED_SPAN_SECONDS = 60;

/** Samples of the last minute by model, the latest last. */
export const speeds = shallowRef<Record<string, SpeedSample[]>>({});

const POLL_MS = 1000;
const IDLE_POLL_MS = 5000;

/** Models that can do a task; those that still load have not said what they can, and may. */
export function modelsFor(task: Task | null): ModelStatus[] {
  const models = status.value?.models ?? [];
  return task === null ? models : models.filter((model) => model.tasks?.includes(task));
}

/** The model chosen for a task, if it is there, else the first one whose best task it is, else any. */
export function modelFor(task: Task): ModelStatus | null {
  const models = modelsFor(task);
  return (
    models.find((model) => model.name === chosenModels.value[task]) ??
    models.find((model) => model.tasks?.[0] === task) ??
    models[0] ??
    null
  );
}

export const isDraining = computed(() => status.value?.is_draining ?? false);

export async function refresh(): Promise<void> {
  try {
    const value = await getJson<ServerStatus>("/api/status");
    noteSpeeds(value);
    status.value = value;
    connection.value = "connected";
    await refreshPlans(value);
  } catch (error) {
    noteFailure(error);
  }
}

export function noteFailure(error: unknown): void {
  if (!(error instanceof ApiError)) return;
  connectionError.value = error.message;
  if (error.status === 401) connection.value = "locked";
  else if (error.status === 0) connection.value = "unreachable";
}

export function unlock(key: string): Promise<void> {
  storeKey(key);
  hasKey.value = key !== "";
  return refresh();
}

/** A plan is made anew when a process is, so it is asked for when a model becomes ready. */
async function refreshPlans(value: ServerStatus): Promise<void> {
  const key = (model: ModelStatus): string => `${model.name}/${model.state}/${model.num_restarts}`;
  const now = value.models.map(key).join();
  if (now === plannedFor) return;
  plans.value = (await getJson<PlanAnswer>("/api/plan")).models;
  plannedFor = now;
}
let plannedFor = "";

function noteSpeeds(value: ServerStatus): void {
  const atSeconds = performance.now() / 1000;
  const next: Record<string, SpeedSample[]> = {};
  for (const model of value.models) {
    const earlier = speeds.value[model.name] ?? [];
    next[model.name] = [
      ...earlier.filter((sample) => sample.atSeconds > atSeconds - SPEED_SPAN_SECONDS),
      { atSeconds, tokensPerSecond: model.tokens_per_second ?? 0 },
    ];
  }
  speeds.value = next;
}

let timer: ReturnType<typeof setTimeout> | undefined;

function isSettled(): boolean {
  const models = status.value?.models ?? [];
  return (
    connection.value === "connected" &&
    models.every((model) => model.state === "ready" || model.state === "failed")
  );
}

async function poll(): Promise<void> {
  clearTimeout(timer);
  if (document.hidden) return;
  if (connection.value !== "locked") await refresh();
  clearTimeout(timer);
  const isQuick = page.value === "machine" || !isSettled();
  timer = setTimeout(() => void poll(), isQuick ? POLL_MS : IDLE_POLL_MS);
}

export function startPolling(): void {
  document.addEventListener("visibilitychange", () => void poll());
  watch(page, () => void poll());
  void poll();
}
