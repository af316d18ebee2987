import type { GpuStatus, HostStatus, ModelStatus, Plan, Tier } from "../api/types";

export const PARTS = ["weights", "cache", "workspace", "process", "other", "free"] as const;
export type MemoryPart = (typeof PARTS)[number];

export interface Gauge {
  totalBytes: number;
  usedBytes: number;
  parts: { part: MemoryPart; nbytes: number }[];
}

interface Planned {
  weights: number;
  cache: number;
  workspace: number;
}

type Plans = Record<string, Plan | null>;

const isGpuDevice = (device: string): boolean => device !== "cpu";

/** What the plans of all models hold in a tier. */
function planned(plans: Plans, tier: Tier): Planned {
  const sum = { weights: 0, cache: 0, workspace: 0 };
  for (const plan of Object.values(plans)) {
    if (plan === null) continue;
    sum.weights += weightBytes(plan, tier);
    if (isGpuDevice(plan.device) !== (tier === "gpu")) continue;
    sum.cache += plan.kv_cache_bytes;
    sum.workspace += plan.workspace_bytes + plan.num_slots * plan.slot_bytes;
  }
  return sum;
}

/** The most that any phase keeps in a tier. */
function weightBytes(plan: Plan, tier: Tier): number {
  const byPhase = Object.values(plan.phases).map((placements) =>
    placements.filter((item) => item.tier === tier).reduce((sum, { nbytes }) => sum + nbytes, 0),
  );
  return Math.max(0, ...byPhase);
}

/**
 * Shares of what the processes really take: weights first, then cache, then workspace; the rest is the process.
 * A plan is an upper limit, so a part that is planned but not touched yet takes nothing.
 */
function gauge(totalBytes: number, usedBytes: number, processBytes: number, plan: Planned): Gauge {
  const used = Math.min(usedBytes, totalBytes);
  let rest = Math.min(processBytes, used);
  const parts = [...(["weights", "cache", "workspace"] as const), "process" as const].map((part) => {
    const nbytes = part === "process" ? rest : Math.min(plan[part], rest);
    rest -= nbytes;
    return { part: part as MemoryPart, nbytes };
  });
  parts.push({ part: "other", nbytes: Math.max(0, used - processBytes) });
  parts.push({ part: "free", nbytes: totalBytes - used });
  return { totalBytes, usedBytes: used, parts: parts.filter(({ nbytes }) => nbytes > 0) };
}

const sumOf = (values: (number | null)[]): number => values.reduce<number>((sum, value) => sum + (value ?? 0), 0);

export function ramGauge(host: HostStatus, models: readonly ModelStatus[], plans: Plans): Gauge {
  const used = host.total_ram_bytes - host.available_ram_bytes;
  return gauge(host.total_ram_bytes, used, sumOf(models.map((model) => model.rss_bytes)), planned(plans, "ram"));
}

export function gpuGauge(gpu: GpuStatus, models: readonly ModelStatus[], plans: Plans): Gauge {
  const process = sumOf(models.map((model) => model.gpu_bytes));
  return gauge(gpu.total_bytes, Math.max(gpu.used_bytes ?? 0, process), process, planned(plans, "gpu"));
}
