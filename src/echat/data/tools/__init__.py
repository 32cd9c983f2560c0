"""Data commands: check, clean, convert, tokenize, inspect, statistics, tokenizer training; executors."""
