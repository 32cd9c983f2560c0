"""Phrases that paraphrasing puts before or after an English sentence."""

OPENINGS = (
    "well", "so", "hey", "listen", "you know", "i mean", "guess what", "hello", "oh", "actually", "honestly",
    "by the way", "can you believe it", "i wanted to tell you", "the thing is", "what a day", "today",
)  # fmt: skip
ENDINGS = (
    "you know", "today", "again", "this week", "and that is that", "right now", "i think", "what do you say",
    "this morning", "last night", "after all", "as always", "and now", "at last",
)  # fmt: skip
