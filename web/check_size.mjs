// Asserts what the built app weighs over the wire, and that it is built as the policy of the page wants it.
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const LIMIT_BYTES = 150_000;
const folder = fileURLToPath(new URL("../src/martlet/server/static", import.meta.url));

let total = 0;
for (const entry of readdirSync(folder, { recursive: true, withFileTypes: true })) {
  if (!entry.isFile()) continue;
  const bytes = gzipSync(readFileSync(join(entry.parentPath, entry.name)), { level: 9 }).length;
  console.log(`${String(bytes).padStart(8)}  ${entry.name}`);
  total += bytes;
}
console.log(`${String(total).padStart(8)}  gzipped, of ${LIMIT_BYTES} allowed`);
if (total > LIMIT_BYTES) {
  console.error("the built app is too big");
  process.exit(1);
}
