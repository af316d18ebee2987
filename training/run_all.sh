#!/usr/bin/env bash
# Train the three bundled models from the corpus; uses one GPU, or two side by side.
#
#   training/run_all.sh CORPUS.jsonl.xz OUTPUT_FOLDER [SCALE]
#
# SCALE stretches the training times (1 = about 18 minutes on two H200s). Then, on any machine:
#   python training/export.py OUTPUT_FOLDER
#   python training/evaluate.py CORPUS.jsonl.xz --training OUTPUT_FOLDER
set -euo pipefail
corpus=$1 out=$2 scale=${3:-1}
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here/../src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
mkdir -p "$out"
python3 "$here/prepare.py" "$corpus" "$out/prepared"

train() { # GPU MODEL SECONDS OPTIONS...
  local gpu=$1 model=$2 seconds=$3
  shift 3
  CUDA_VISIBLE_DEVICES=$gpu python3 "$here/train.py" "$model" "$out/prepared" "$out" \
    --seconds "$(python3 -c "print($seconds * $scale)")" "$@"
  touch "$out/$model.done"
}
writer() {
  train "$1" cpm1-teacher 250
  train "$1" cpm1-mini 450 --teacher "$out/cpm1-teacher"
}
pairs() {
  train "$1" cpm2-mini 600 --batch 256 --lr 1.5e-3
  train "$1" eva-mini 430 --batch 256 --lr 1.5e-3
}
if [ "$(nvidia-smi --list-gpus | wc -l)" -gt 1 ]; then
  writer 0 &
  pairs 1 &
  wait -n
  wait
else
  writer 0
  pairs 0
fi
touch "$out/all.done"
