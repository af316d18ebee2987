import { describe, expect, it } from "vitest";

import type { GpuStatus, HostStatus, ModelStatus, Placement, Plan } from "../src/api/types";
import { linePoints, roundTop } from "../src/machine/chart";
import { bytesByTier, phasesOf, rowsOf } from "../src/machine/layers";
import { gpuGauge, ramGauge } from "../src/machine/memory";
import { formatBytes, formatCount, formatProbability, formatRate, formatSeconds } from "../src/text/format";
import { familyName, nameParts } from "../src/text/names";

const part = (block: string, nbytes: number, tier: Placement["tier"], computed_on: string | null): Placement => ({
  block,
  nbytes,
  tier,
  computed_on,
});

const decode = [
  part("fixed", 10, "gpu", "gpu"),
  part("encoder.0", 100, "ram", null),
  part("decoder.0", 200, "gpu", "gpu"),
  part("decoder.1", 200, "ram", "gpu"),
  part("decoder.0.once", 30, "ram", null),
];
const plan = {
  device: "cuda",
  kv_cache_bytes: 50,
  workspace_bytes: 20,
  num_slots: 2,
  slot_bytes: 5,
  phases: { prefill: decode, decode },
} as Plan;

describe("the layers", () => {
  it("stand in one row a stack, streamed ones marked, idle ones too", () => {
    const rows = rowsOf(decode);
    expect(rows.map(({ stack, totalBytes }) => [stack, totalBytes])).toEqual([
      ["fixed", 10],
      ["encoder", 100],
      ["decoder", 400],
      ["once", 30],
    ]);
    expect(rows[2]!.blocks.map(({ isStreamed, isUsed }) => [isStreamed, isUsed])).toEqual([
      [false, true],
      [true, true],
    ]);
    expect(rows[1]!.blocks[0]).toMatchObject({ isStreamed: false, isUsed: false });
  });

  it("computed by the processor from RAM are not streamed", () => {
    expect(rowsOf([part("decoder.0", 1, "ram", "cpu")])[0]!.blocks[0]!.isStreamed).toBe(false);
  });

  it("are summed by where they are", () => {
    expect(bytesByTier(decode)).toEqual([
      { tier: "gpu", nbytes: 210 },
      { tier: "ram", nbytes: 330 },
    ]);
  });

  it("have the phases of their model", () => {
    expect(phasesOf(plan)).toEqual(["prefill", "decode"]);
  });
});

describe("a memory gauge", () => {
  const host = { total_ram_bytes: 1000, available_ram_bytes: 400 } as HostStatus;
  const gpu: GpuStatus = { name: "card", total_bytes: 400, used_bytes: 350 };
  const model = { rss_bytes: 500, gpu_bytes: 320 } as ModelStatus;
  const parts = (gauge: ReturnType<typeof ramGauge>) =>
    Object.fromEntries(gauge.parts.map((item) => [item.part, item.nbytes]));

  it("shows RAM by what holds it, and always as a whole", () => {
    const gauge = ramGauge(host, [model], { m: plan });
    expect(parts(gauge)).toEqual({ weights: 330, process: 170, other: 100, free: 400 });
    expect(gauge.parts.reduce((sum, { nbytes }) => sum + nbytes, 0)).toBe(1000);
  });

  it("shows the GPU with cache, workspace and slots", () => {
    expect(parts(gpuGauge(gpu, [model], { m: plan }))).toEqual({
      weights: 210,
      cache: 50,
      workspace: 30,
      process: 30,
      other: 30,
      free: 50,
    });
  });

  it("shows no more than is used while a plan is not filled yet", () => {
    const gauge = gpuGauge(gpu, [{ ...model, gpu_bytes: 100 }], { m: plan, loading: null });
    expect(parts(gauge)).toEqual({ weights: 100, other: 250, free: 50 });
  });
});

describe("the chart", () => {
  it("has the latest value at the right edge", () => {
    const area = { width: 40, height: 10, span: 4, top: 100 };
    const sample = (atSeconds: number, tokensPerSecond: number) => ({ atSeconds, tokensPerSecond });
    expect(linePoints([sample(7, 0), sample(8.5, 50), sample(9, 100)], area)).toBe("20.0,10.0 35.0,5.0 40.0,0.0");
    expect(linePoints([], area)).toBe("");
  });

  it.each([
    [[0], 1],
    [[3, 7], 10],
    [[11], 20],
    [[180], 200],
    [[1000], 1000],
  ])("over %j ends at %i", (values, top) => {
    expect(roundTop(...values)).toBe(top);
  });
});

describe("numbers for people", () => {
  it("have a unit and few figures", () => {
    expect([0, 1023, 1024, 1536 * 1024, 5 * 1024 ** 3].map(formatBytes)).toEqual([
      "0 B",
      "1023 B",
      "1.0 KiB",
      "1.5 MiB",
      "5.0 GiB",
    ]);
    expect([24_100_000, 8_190_000_000, null].map(formatCount)).toEqual(["24.1M", "8.2B", "–"]);
    expect([0.0123, 1.25, 75, 150, 7300].map(formatSeconds)).toEqual(["12 ms", "1.3 s", "75.0 s", "2 min 30 s", "2 h 1 min"]);
    expect([2.345, 123.4, null].map(formatRate)).toEqual(["2.3", "123", "–"]);
    expect([0.412, 0.0412, 0.0004, 0.00000001, 0, null].map(formatProbability)).toEqual([
      "41 %",
      "4.1 %",
      "0.04 %",
      "< 0.01 %",
      "0 %",
      "–",
    ]);
  });
});

describe("the name of a model", () => {
  it.each([
    ["Qwen/Qwen3-8B", ["Qwen/", "Qwen3-", "8B"]],
    ["Qwen3-8B:Qwen3-8B-Q4_K_M.gguf", ["Qwen3-", "8B:", "Qwen3-", "8B-", "Q4_", "K_", "M.gguf"]],
    ["cpm2-mini", ["cpm2-", "mini"]],
    ["-a--b/", ["-", "a--", "b/"]],
    ["", []],
  ])("%s may break behind its marks", (name, parts) => {
    expect(nameParts(name)).toEqual(parts);
    expect(nameParts(name).join("")).toBe(name);
  });

  it("is that of its makers for a family, where that is known", () => {
    expect(["gpt_neox", "qwen3", "one_of_tomorrow", null].map(familyName)).toEqual([
      "GPT-NeoX",
      "Qwen3",
      "one_of_tomorrow",
      "–",
    ]);
  });
});
