/** Points of a line over `width` x `height`, the latest at the right edge; 0 is at the bottom. */
export function linePoints(
  values: readonly number[],
  slots: number,
  top: number,
  width: number,
  height: number,
): string {
  const step = width / (slots - 1);
  const left = width - (values.length - 1) * step;
  return values
    .map((value, i) => `${(left + i * step).toFixed(1)},${(height - (value / top) * height).toFixed(1)}`)
    .join(" ");
}

/** A round number at or above every value, so that the scale changes rarely: 1, 2 or 5 times a power of ten. */
export function roundTop(...values: number[]): number {
  const largest = Math.max(1, ...values);
  const power = 10 ** Math.floor(Math.log10(largest));
  return [1, 2, 5, 10].map((factor) => factor * power).find((top) => top >= largest) ?? largest;
}
