"""Deprecated: `echat data tokenize`."""

from echat.deprecated_commands import run_replacement

if __name__ == "__main__":
    run_replacement("echat.train.speech_ids")
