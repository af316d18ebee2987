/** localStorage that may be full, refused or filled by somebody else. */

export function readStored(name: string): unknown {
  try {
    const text = localStorage.getItem(`martlet.${name}`);
    return text === null ? null : (JSON.parse(text) as unknown);
  } catch {
    return null;
  }
}

/** Whether it could be kept. */
export function writeStored(name: string, value: unknown): boolean {
  try {
    localStorage.setItem(`martlet.${name}`, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
