#!/usr/bin/env bash
# echat-mini from pretrained parts: ingredients, made speech, answer voice, text, and the three stages of training.
# Every stage resumes: run the script again after an interruption and it goes on where it was. Finished ones are skipped.
#
#   runs/echat_mini.sh                            # everything, from the conversations that ship with the corpus maker
#   runs/echat_mini.sh voices                     # these stages only
#   TEXTS=texts runs/echat_mini.sh                # another folder with cues-*.yaml and dialogues-*.yaml
#   MINUTES_text=60 runs/echat_mini.sh text       # a budget in minutes in place of the recipe's, per training stage
#   DATA_PACK=../data runs/echat_mini.sh          # with recordings of people whose licence allows it: laughs, words
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-.venv/bin/python}
OUT=exp/echat_mini
TEXTS=${TEXTS:-src/echat/corpus/en/conversations}
DEVICE=${DEVICE:-cpu}
THREADS=${THREADS:-1}
export OMP_NUM_THREADS=$THREADS

all=(ingredients starts voices records tokenizer speech_ids flow vocoder text understanding
  stage2_tts stage2_s2s stage3_empathy)
stages=("$@")
[ $# -gt 0 ] || stages=("${all[@]}")

ingredients() {
  "$PYTHON" scripts/ingredients.py $OUT/ingredients
}

starts() { # the parts as folders that a recipe starts from
  local size llm=$OUT/starts/smollm2-16k
  for size in tiny.en base; do
    [ -d "$OUT/starts/whisper-$size" ] ||
      "$PYTHON" scripts/whisper_from_ctranslate2.py $OUT/ingredients/whisper-$size/model.bin $OUT/starts/whisper-$size
  done
  local texts
  mapfile -t texts < <(find "$TEXTS" -name 'cues-*.yaml' -o -name 'dialogues-*.yaml' | sort)
  [ -f $llm/config.json ] ||
    "$PYTHON" scripts/smollm2_from_gguf.py $OUT/ingredients/smollm2-135m-instruct/model.gguf $llm "${texts[@]}"
}

voices() { # questions, also with the moods, ages and sounds of their cue sets, and answers
  local more=(--cues)
  [ -f $OUT/fillers.jsonl ] && more+=(--fillers $OUT/fillers.jsonl)
  [ -n "${DATA_PACK:-}" ] && more+=(--data-pack "$DATA_PACK")
  "$PYTHON" -m echat corpus conversation-audio $OUT/ingredients "$TEXTS" $OUT/corpus "${more[@]}"
}

conversation_records() { # the conversations as records; what is recognised is in written form
  "$PYTHON" -m echat corpus conversation-records "$TEXTS" $OUT/data --spoken $OUT/corpus
}

records() { # the conversations as records, and recordings of people
  conversation_records
  [ -z "${DATA_PACK:-}" ] || "$PYTHON" -c "
import sys; from pathlib import Path; from echat.corpus.recordings import write_recordings_manifest
write_recordings_manifest(Path(sys.argv[1]), Path(sys.argv[2]), written=True)" "$DATA_PACK" $OUT/real/manifest.jsonl
}

speech_ids() { # of the answers; the records of the conversations take them from there
  "$PYTHON" -m echat data tokenize $OUT/corpus/answers/manifest.jsonl --tokenizer $OUT/tokenizer/model
  rm -f $OUT/data/speech_ids.jsonl # beside the records, of an earlier version
  conversation_records
}

learn() { # one training stage: recipe of the same name, resumed when it had begun
  local name=$1 minutes=MINUTES_$1
  if [ -d "$OUT/$name/model" ]; then
    echo "$name: done, $OUT/$name/model"
    return
  fi
  local overrides=("device=$DEVICE" "threads=$THREADS")
  [ -n "${!minutes:-}" ] && overrides+=("budget={minutes: ${!minutes}}")
  "$PYTHON" -m echat train "recipes/echat_mini/$name.yaml" "${overrides[@]}" --resume
  [ -d "$OUT/$name/model" ] || { echo "$name: stopped before its end; run again to go on"; exit 1; }
}

for stage in "${stages[@]}"; do
  case $stage in
    ingredients | starts | voices | records | speech_ids) "$stage" ;;
    *)
      [ -f "recipes/echat_mini/$stage.yaml" ] || { echo "stage: expected one of ${all[*]}, found $stage" >&2; exit 2; }
      learn "$stage"
      ;;
  esac
done
