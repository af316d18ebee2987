import { ApiError, errorIn, retryAfterSeconds } from "./errors";
import { SseParser, queuePosition } from "./sse";

const KEY_NAME = "martlet.key";

/** The API key stays in this tab and is forgotten with it. */
export function storedKey(): string {
  return sessionStorage.getItem(KEY_NAME) ?? "";
}

export function storeKey(key: string): void {
  if (key === "") sessionStorage.removeItem(KEY_NAME);
  else sessionStorage.setItem(KEY_NAME, key);
}

function headers(hasBody: boolean): Headers {
  const result = new Headers();
  if (hasBody) result.set("Content-Type", "application/json");
  const key = storedKey();
  if (key !== "") result.set("Authorization", `Bearer ${key}`);
  return result;
}

async function send(path: string, init: RequestInit): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(path, { ...init, credentials: "omit", redirect: "error" });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new ApiError("", 0, "unreachable");
  }
  if (response.ok) return response;
  throw await refusal(response);
}

async function refusal(response: Response): Promise<ApiError> {
  const found = errorIn(await response.json().catch(() => null));
  return new ApiError(
    found?.message || response.statusText,
    response.status,
    found?.code ?? null,
    retryAfterSeconds(response.headers.get("Retry-After"), Date.now()),
  );
}

export async function getJson<T>(path: string, signal?: AbortSignal): Promise<T> {
  const response = await send(path, { headers: headers(false), ...(signal ? { signal } : {}) });
  return (await response.json()) as T;
}

export interface StreamHandlers<T> {
  signal: AbortSignal;
  onChunk(chunk: T): void;
  onPosition(position: number): void;
}

/**
 * Posts a request whose answer is an event stream, until its end.
 * Throws ApiError for a refusal, for an error within the stream, and for a stream that breaks off.
 */
export async function postStream<T>(path: string, body: unknown, on: StreamHandlers<T>): Promise<void> {
  const response = await send(path, {
    method: "POST",
    headers: headers(true),
    body: JSON.stringify(body),
    signal: on.signal,
  });
  const parser = new SseParser();
  const reader = response.body!.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new ApiError("", 0, "broken_off");
      for (const item of parser.push(value)) {
        if (item.kind === "comment") {
          const position = queuePosition(item.text);
          if (position !== null) on.onPosition(position);
        } else if (item.data === "[DONE]") {
          return;
        } else {
          on.onChunk(chunkOf<T>(item.data));
        }
      }
    }
  } catch (error) {
    if (error instanceof ApiError || on.signal.aborted) throw error;
    throw new ApiError("", 0, "broken_off");
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

/** The value of one event. Throws ApiError where the event tells of one, or is not JSON. */
export function chunkOf<T>(data: string): T {
  let value: unknown;
  try {
    value = JSON.parse(data);
  } catch {
    throw new ApiError(data.slice(0, 200), 0, "bad_event");
  }
  const error = errorIn(value);
  if (error !== null) throw new ApiError(error.message, 200, error.code);
  return value as T;
}
