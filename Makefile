# make demo        a spoken question in; thought, reply and $(ANSWER) out. Sets up what that needs, once
# make serve       a page to talk to and the API, on this machine
# make test        lint, types, all tests. Sets up everything, once: says what for
# make test-quick  the tests without the slow ones
# make setup       what make test needs, without running it

QUESTION ?= src/echat/models/echat-tiny/examples/question.wav
ANSWER ?= answer.wav
THINK ?= language

BIN := .venv/bin
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: setup demo serve test test-quick format clean

setup:
	@bash scripts/setup.sh test

demo:
	@bash scripts/setup.sh run
	$(BIN)/echat reply $(QUESTION) --think $(THINK) --seed 0 -o $(ANSWER)
	@echo "the answer lies in $(abspath $(ANSWER)); next:"
	@echo "  $(BIN)/echat reply YOUR_QUESTION.wav -o your_answer.wav"
	@echo "  make serve    # talk to it in a browser"

serve:
	@bash scripts/setup.sh serve
	$(BIN)/echat serve

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 -q

test-quick: setup
	$(BIN)/python -m pytest -n 2 -q -m "not slow"

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis answer.wav
