#!/usr/bin/env bash
# echat-tiny from nothing: corpus, tokenizers, encoder, language model, the three stages, voice. Every stage resumes:
# run the script again after an interruption and it goes on where it was. Finished stages are skipped.
#
#   runs/tiny.sh                                  # everything
#   runs/tiny.sh stage1 stage2                    # these stages only
#   MINUTES_stage1=60 runs/tiny.sh                # a budget in minutes, per stage
#   RANKS=2 runs/tiny.sh                          # every stage in two processes, gradients summed
#   DEVICE=cuda PRECISION=bf16 runs/tiny.sh       # on a GPU
#   PRECISION=bf16 runs/tiny.sh                   # three times as fast on CPUs that multiply bf16 faster than float32
#   DATA_PACK=../data runs/tiny.sh                # with real recordings beside the synthetic ones
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-.venv/bin/python}
OUT=exp/tiny
DEVICE=${DEVICE:-cpu}
THREADS=${THREADS:-1} # two processes of one thread beat one process of two
export OMP_NUM_THREADS=$THREADS
RANKS=${RANKS:-1}

all=(corpus text_tokenizer tokenizer speech_ids encoder_first encoder replies llm situations spelling stage1 stage2 stage3 thoughts follow spelling_on follow_on average tempo tempo_again average_tempo follow_tempo average_all flow vocoder pack)
stages=("$@")
[ $# -gt 0 ] || stages=("${all[@]}")

corpus() {
  "$PYTHON" -m echat corpus build recipes/tiny/corpus.yaml ${DATA_PACK:+data_pack=$DATA_PACK}
}

text_tokenizer() {
  [ -f $OUT/text_tokenizer/tokenizer.json ] ||
    "$PYTHON" -m echat data train-tokenizer $OUT/text_tokenizer $OUT/corpus/text/manifest.jsonl --size 800
}

speech_ids() {
  local manifest
  for manifest in $OUT/corpus/{answers,train,paraphrased,dev}/manifest.jsonl; do
    [ -f "$manifest" ] || continue
    [ "$(dirname "$manifest")/speech_ids.jsonl" -nt "$manifest" ] ||
      "$PYTHON" -m echat data tokenize "$manifest" --tokenizer $OUT/tokenizer/model
  done
}

learn() { # one training stage: recipe of the same name, resumed when it had begun
  local name=$1 minutes=MINUTES_$1
  if [ -d "$OUT/$name/model" ]; then
    echo "$name: done, $OUT/$name/model"
    return
  fi
  local overrides=("device=$DEVICE" "threads=$THREADS")
  [ -n "${PRECISION:-}" ] && overrides+=("precision=$PRECISION")
  [ -n "${!minutes:-}" ] && overrides+=("budget={minutes: ${!minutes}}")
  local launcher=("$PYTHON")
  [ "$RANKS" -gt 1 ] && launcher+=(-m torch.distributed.run --standalone --nproc-per-node "$RANKS")
  "${launcher[@]}" -m echat train "recipes/tiny/$name.yaml" "${overrides[@]}" --resume
  [ -d "$OUT/$name/model" ] || { echo "$name: stopped before its end; run again to go on"; exit 1; }
}

average() { # of both runs that follow
  mean average follow follow_on
}

average_tempo() { # of both ears
  mean average_tempo tempo tempo_again
}

average_all() { # half of it as it was before, a quarter of each that came after
  mean average_all average average average_tempo follow_tempo
}

mean() { # of the weights of stages, each as often as it is named
  local name=$1 stage models=()
  shift
  for stage in "$@"; do models+=("$OUT/$stage/model"); done
  "$PYTHON" -m echat average "$OUT/$name/model" "${models[@]}"
}

pack() { # the folder that the package ships; the voice is that of any recorded answer
  local answer
  answer=$(find $OUT/corpus/answers/audio -name 'prompt-*' -o -name 'user-*' | sort | sed -n 1p)
  "$PYTHON" -m echat assemble --dialogue $OUT/average_all/model --tokenizer $OUT/tokenizer/model \
    --flow $OUT/flow/model --vocoder $OUT/vocoder/model --voice slt="$answer" "${MODEL:-$OUT/echat-tiny}"
}

for stage in "${stages[@]}"; do
  case $stage in
    corpus | text_tokenizer | speech_ids | average | average_tempo | average_all | pack) "$stage" ;;
    *)
      [ -f "recipes/tiny/$stage.yaml" ] || { echo "stage: expected one of ${all[*]}, found $stage" >&2; exit 2; }
      learn "$stage"
      ;;
  esac
done
