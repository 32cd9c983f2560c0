"""What a turn, a task, a thought and a token are. Pure Python: a tokenizer is passed in, nothing here needs torch."""
