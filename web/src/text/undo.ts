/** The earlier and later states of a text. Typing in one go is one step. */
export class UndoHistory {
  private past: string[] = [];
  private future: string[] = [];
  private lastTyped = Number.NEGATIVE_INFINITY;

  constructor(
    private current: string,
    private readonly limit = 200,
    private readonly pauseMs = 800,
  ) {}

  get text(): string {
    return this.current;
  }

  get canUndo(): boolean {
    return this.past.length > 0;
  }

  get canRedo(): boolean {
    return this.future.length > 0;
  }

  /** A change by the keyboard; keys that follow one another quickly are undone together. */
  type(text: string, now: number): void {
    if (text === this.current) return;
    if (now - this.lastTyped > this.pauseMs) this.remember();
    else this.future = [];
    this.lastTyped = now;
    this.current = text;
  }

  /** A change that is a step of its own. */
  set(text: string): void {
    if (text === this.current) return;
    this.remember();
    this.lastTyped = Number.NEGATIVE_INFINITY;
    this.current = text;
  }

  undo(): string {
    this.move(this.past, this.future);
    return this.current;
  }

  redo(): string {
    this.move(this.future, this.past);
    return this.current;
  }

  private remember(): void {
    this.past.push(this.current);
    if (this.past.length > this.limit) this.past.shift();
    this.future = [];
  }

  private move(from: string[], to: string[]): void {
    const text = from.pop();
    if (text === undefined) return;
    to.push(this.current);
    this.current = text;
    this.lastTyped = Number.NEGATIVE_INFINITY;
  }
}
