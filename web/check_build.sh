#!/bin/sh
# Builds the app and fails unless the committed build is the same, file for file, and small enough.
set -eu
cd "$(dirname "$0")"
built=../src/martlet/server/static
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT

npm run --silent check
npm exec -- vite build --logLevel warn --outDir "$fresh" --emptyOutDir
diff -r "$fresh" "$built" || {
  echo "src/martlet/server/static is not what web/ builds; run 'make web' and commit it" >&2
  exit 1
}
node check_size.mjs
