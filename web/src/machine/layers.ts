import type { Phase, Placement, Plan, Tier } from "../api/types";

export const PHASES: readonly Phase[] = ["encode", "prefill", "decode"];
export const STACKS = ["fixed", "encoder", "decoder", "once"] as const;
export type Stack = (typeof STACKS)[number];

export interface Block {
  name: string;
  nbytes: number;
  tier: Tier;
  isStreamed: boolean;
  isUsed: boolean;
}

export interface StackRow {
  stack: Stack;
  blocks: Block[];
  totalBytes: number;
}

export function stackOf(block: string): Stack {
  if (block.endsWith(".once")) return "once";
  if (block.startsWith("encoder.")) return "encoder";
  return block.startsWith("decoder.") ? "decoder" : "fixed";
}

/** Computed where it does not live: it has to travel each time. */
function isStreamed({ tier, computed_on: place }: Placement): boolean {
  return place !== null && place !== "cpu" && tier !== "gpu";
}

export function phasesOf(plan: Plan): Phase[] {
  return PHASES.filter((phase) => plan.phases[phase]);
}

/** The blocks of a phase by stack, in the order in which they run. */
export function rowsOf(placements: readonly Placement[]): StackRow[] {
  return STACKS.flatMap((stack) => {
    const blocks = placements
      .filter(({ block }) => stackOf(block) === stack)
      .map((placement) => ({
        name: placement.block,
        nbytes: placement.nbytes,
        tier: placement.tier,
        isStreamed: isStreamed(placement),
        isUsed: placement.computed_on !== null,
      }));
    if (blocks.length === 0) return [];
    return [{ stack, blocks, totalBytes: blocks.reduce((sum, { nbytes }) => sum + nbytes, 0) }];
  });
}

/** Bytes of weights in each tier, for tiers that hold any. */
export function bytesByTier(placements: readonly Placement[]): { tier: Tier; nbytes: number }[] {
  return (["gpu", "ram", "disk"] as const)
    .map((tier) => ({
      tier,
      nbytes: placements.filter((item) => item.tier === tier).reduce((sum, { nbytes }) => sum + nbytes, 0),
    }))
    .filter(({ nbytes }) => nbytes > 0);
}
