/** Why a request did not get its answer, in a form that can be shown. */
export class ApiError extends Error {
  override readonly name = "ApiError";

  constructor(
    message: string,
    /** HTTP status; 0 where no answer came at all. */
    readonly status: number,
    readonly code: string | null = null,
    /** How long the server asks to wait before the next try, or null. */
    readonly retryAfterSeconds: number | null = null,
  ) {
    super(message);
  }
}

/** The error object of a JSON value, or null if the value is none. */
export function errorIn(value: unknown): { message: string; code: string | null } | null {
  if (typeof value !== "object" || value === null || !("error" in value)) return null;
  const error = value.error;
  if (typeof error === "string") return { message: error, code: null };
  if (typeof error !== "object" || error === null) return null;
  const message = "message" in error && typeof error.message === "string" ? error.message : "";
  const code = "code" in error && error.code !== null ? String(error.code) : null;
  return { message, code };
}

/** Seconds from a Retry-After header: a number, or a date. Null if there is none or it is neither. */
export function retryAfterSeconds(header: string | null, now: number): number | null {
  if (header === null || header.trim() === "") return null;
  const seconds = Number(header);
  if (Number.isFinite(seconds)) return Math.max(0, seconds);
  const date = Date.parse(header);
  return Number.isNaN(date) ? null : Math.max(0, (date - now) / 1000);
}
