"""English: scenarios, written conversations, thoughts, spoken forms of texts, and the table of voices."""

LANGUAGE = "en"  # of every record made here
