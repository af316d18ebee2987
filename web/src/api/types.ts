/** The values of the HTTP interface, as far as the pages read them. */

export type Task = "fill" | "chat" | "write";
export type ModelState = "loading" | "ready" | "restarting" | "failed";
export type Tier = "gpu" | "ram" | "disk";
/** What a chat may be told beside its turns. */
export type ChatControl = "system" | "thinking" | "tools";
export type Phase = "encode" | "prefill" | "decode";

export interface ModelStatus {
  name: string;
  state: ModelState;
  failure: string | null;
  family: string | null;
  tasks: Task[] | null;
  thinks: boolean | null;
  chat_controls: ChatControl[] | null;
  num_slots: number | null;
  num_running: number;
  num_waiting: number;
  cache_tokens: number | null;
  cache_capacity_tokens: number | null;
  tokens_per_second: number | null;
  predicted_tokens_per_second: number | null;
  output_tokens_total: number | null;
  rss_bytes: number | null;
  gpu_bytes: number | null;
  num_weights: number | null;
  weight_type: string | null;
  weight_bytes: number | null;
  load_seconds: number | null;
  num_restarts: number;
  device: string | null;
}

export interface GpuStatus {
  name: string;
  total_bytes: number;
  used_bytes: number | null;
}

export interface HostStatus {
  total_ram_bytes: number;
  available_ram_bytes: number;
  num_cores: number;
  gpus: GpuStatus[];
}

export interface ServerStatus {
  version: string;
  uptime_seconds: number;
  is_draining: boolean;
  host: HostStatus;
  models: ModelStatus[];
}

export interface Placement {
  block: string;
  nbytes: number;
  tier: Tier;
  computed_on: string | null;
}

export interface Plan {
  device: string;
  description: string;
  budget: { gpu_bytes: number; ram_bytes: number };
  kv_cache_bytes: number;
  workspace_bytes: number;
  context_bytes: number;
  num_slots: number;
  slot_bytes: number;
  total_bytes: Record<Tier, number>;
  streamed_bytes: Partial<Record<Phase, number>>;
  seconds_per_token: number | null;
  time_to_first_token_seconds: number | null;
  phases: Partial<Record<Phase, Placement[]>>;
}

export interface PlanAnswer {
  models: Record<string, Plan | null>;
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
}

export interface Timings {
  prefill_seconds?: number | null;
  decode_seconds?: number | null;
  tokens_per_second?: number | null;
}

export interface ChatMessage {
  role: "user" | "assistant" | "system";
  content: string;
}

export interface ChatDelta {
  content?: string | null;
  /** What the model thinks before it answers. */
  reasoning_content?: string | null;
}

export interface ChatChunk {
  choices: { index: number; delta: ChatDelta; finish_reason: string | null }[];
  usage?: Usage | null;
  timings?: Timings | null;
}

export interface CompletionChunk {
  choices: { index: number; text: string; finish_reason: string | null }[];
  usage?: Usage | null;
  timings?: Timings | null;
}

export interface Alternative {
  text: string;
  probability: number | null;
}

export interface FilledBlank extends Alternative {
  index: number;
  closed: boolean;
  alternatives?: Alternative[];
}

export interface FillChunk {
  object: "fill.chunk";
  blank: number;
  text: string;
}

export interface FillResult {
  object: "fill";
  text: string;
  blanks: FilledBlank[];
  usage: Usage;
  finish_reason: string;
  timings?: Timings | null;
}
