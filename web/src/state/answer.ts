import { computed, reactive, ref } from "vue";

import { postStream } from "../api/client";
import { ApiError } from "../api/errors";
import type { Timings, Usage } from "../api/types";
import { noteFailure, refresh } from "./status";

/** What is known of the speed of an answer. */
export interface Speed {
  firstTokenSeconds: number | null;
  tokensPerSecond: number | null;
  outputTokens: number | null;
}

interface Reported {
  usage?: Usage | null;
  timings?: Timings | null;
}

/** One answer at a time: what runs, how long it took, where it stands in the queue, why it failed. */
export function useAnswer() {
  const isRunning = ref(false);
  const position = ref<number | null>(null);
  const error = ref<ApiError | null>(null);
  const speed = reactive<Speed>({ firstTokenSeconds: null, tokensPerSecond: null, outputTokens: null });
  let controller: AbortController | null = null;

  /**
   * Sends a request and hands on its chunks; true once the answer is complete.
   * A new answer stops the one before it. onChunk returns whether the chunk brought text.
   */
  async function run<T extends object>(
    path: string,
    body: unknown,
    onChunk: (chunk: T) => boolean,
  ): Promise<boolean> {
    controller?.abort();
    const mine = new AbortController();
    controller = mine;
    isRunning.value = true;
    position.value = null;
    error.value = null;
    Object.assign(speed, { firstTokenSeconds: null, tokensPerSecond: null, outputTokens: null });
    const start = performance.now();
    try {
      await postStream<T>(path, body, {
        signal: mine.signal,
        onPosition: (value) => (position.value = value),
        onChunk: (chunk) => {
          const hasText = onChunk(chunk);
          if (hasText && speed.firstTokenSeconds === null) {
            speed.firstTokenSeconds = (performance.now() - start) / 1000;
            position.value = null;
          }
          noteReport(chunk, start);
        },
      });
      return true;
    } catch (problem) {
      if (mine.signal.aborted) return false;
      if (!(problem instanceof ApiError)) throw problem;
      error.value = problem;
      noteFailure(problem);
      if (problem.status === 503) void refresh();
      return false;
    } finally {
      if (controller === mine) {
        controller = null;
        isRunning.value = false;
        position.value = null;
      }
    }
  }

  function noteReport(chunk: Reported, start: number): void {
    const tokens = chunk.usage?.completion_tokens;
    if (tokens === undefined) return;
    speed.outputTokens = tokens;
    const writing = (performance.now() - start) / 1000 - (speed.firstTokenSeconds ?? 0);
    const measured = tokens > 1 && writing > 0 ? (tokens - 1) / writing : null;
    speed.tokensPerSecond = chunk.timings?.tokens_per_second ?? measured;
  }

  function stop(): void {
    controller?.abort();
    controller = null;
    isRunning.value = false;
    position.value = null;
  }

  /** Stops what runs and leaves nothing of the last answer on the page. */
  function forget(): void {
    stop();
    error.value = null;
    Object.assign(speed, { firstTokenSeconds: null, tokensPerSecond: null, outputTokens: null });
  }

  const isWaiting = computed(() => isRunning.value && speed.firstTokenSeconds === null);
  return reactive({ isRunning, isWaiting, position, error, speed, run, stop, forget });
}

export type Answer = ReturnType<typeof useAnswer>;
