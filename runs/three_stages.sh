#!/usr/bin/env bash
# All stages of OSUM-EChat one after another from the command line: understanding, generation (reading aloud, speech to
# speech), empathy (thoughts in labels, in language), the voice. Each resumes where it was stopped, a finished one is
# skipped, and each ends with a report to look at: exp/SIZE/STAGE/report.html.
#
#   runs/three_stages.sh                             # SIZE=mini: a made corpus, minutes on a laptop; curves, no wisdom
#   SIZE=small DEVICE=cuda runs/three_stages.sh      # Whisper small and Qwen2.5-0.5B, your data in datasets/
#   SIZE=osum_echat DEVICE=cuda RANKS=8 runs/three_stages.sh stage3_empathy_label
#   STEPS=50 runs/three_stages.sh                    # so many steps in each stage
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-.venv/bin/python}
SIZE=${SIZE:-mini}
DEVICE=${DEVICE:-cpu}
RANKS=${RANKS:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
OUT=exp/$SIZE

stages=("$@")
if [ $# = 0 ]; then
  stages=(stage1_understanding stage2_tts stage2_s2s stage3_empathy_label stage3_empathy_language token2wav)
  [ "$SIZE" != mini ] || stages=(corpus llm "${stages[@]}")
fi

corpus() { # spoken questions and answers, and the speech ids of the answers by the shipped speech tokenizer
  local set
  "$PYTHON" -m echat corpus build recipes/tiny/corpus.yaml folder=$OUT/corpus "sets=[text,answers,dev,train]" \
    train="${DIALOGUES:-200}" dev=16 reading=0 text=4000 augmentation.shuffled=1 augmentation.random_words=0
  for set in answers train dev; do
    [ "$OUT/corpus/$set/speech_ids.jsonl" -nt "$OUT/corpus/$set/manifest.jsonl" ] ||
      "$PYTHON" -m echat data tokenize "$OUT/corpus/$set/manifest.jsonl" --tokenizer echat-tiny
  done
}

learn() {
  local stage=$1
  if [ -d "$OUT/$stage/model" ]; then
    echo "$stage: done, $OUT/$stage/model"
    return
  fi
  local launcher=("$PYTHON") overrides=("device=$DEVICE")
  [ -z "${STEPS:-}" ] || overrides+=("budget.steps=$STEPS")
  [ "$RANKS" = 1 ] || launcher+=(-m torch.distributed.run --standalone --nproc-per-node "$RANKS")
  "${launcher[@]}" -m echat train "recipes/$SIZE/$stage.yaml" "${overrides[@]}" --resume
  [ -d "$OUT/$stage/model" ] || { echo "$stage: stopped before its end; run again to go on"; exit 1; }
  "$(dirname "$PYTHON")/echat" report "$OUT/$stage"
}

for stage in "${stages[@]}"; do
  if [ "$stage" = corpus ]; then corpus; else learn "$stage"; fi
done
