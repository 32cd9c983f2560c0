"""What a turn, a task, a thought and a token are. Pure Python: the tokenizer is passed in, no torch."""
