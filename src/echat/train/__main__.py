"""Deprecated: `echat train`."""

from echat.deprecated_commands import run_replacement

if __name__ == "__main__":
    run_replacement("echat.train")
