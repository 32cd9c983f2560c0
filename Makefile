# make setup   everything into .venv (done once, then skipped; demo and test do it when needed)
# make demo    a spoken question in; thought, reply and $(ANSWER) out
# make test    lint, types, tests

QUESTION ?= src/echat/models/echat-tiny/examples/question.wav
ANSWER ?= answer.wav
THINK ?= language

BIN := .venv/bin
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: setup demo test format clean

setup:
	@bash scripts/setup.sh

demo: setup
	$(BIN)/echat reply $(QUESTION) --think $(THINK) --seed 0 -o $(ANSWER)

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 -q

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis answer.wav
