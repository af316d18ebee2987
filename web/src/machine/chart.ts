import type { SpeedSample } from "../state/status";

export interface Area {
  width: number;
  height: number;
  /** Seconds from the left edge to the right one, where the latest sample is. */
  span: number;
  /** The value at the upper edge; 0 is at the lower one. */
  top: number;
}

/** Points of a line, for SVG. */
export function linePoints(samples: readonly SpeedSample[], { width, height, span, top }: Area): string {
  const latest = samples.at(-1)?.atSeconds ?? 0;
  return samples
    .map(({ atSeconds, tokensPerSecond }) => {
      const x = width - ((latest - atSeconds) / span) * width;
      const y = height - (tokensPerSecond / top) * height;
      return `${x.toFixed(1)},${y.toFixed(1)}`;
    })
    .join(" ");
}

/** A round number at or above every value, so that the scale changes rarely: 1, 2 or 5 times a power of ten. */
export function roundTop(...values: number[]): number {
  const largest = Math.max(1, ...values);
  const power = 10 ** Math.floor(Math.log10(largest));
  return [1, 2, 5, 10].map((factor) => factor * power).find((top) => top >= largest) ?? largest;
}
