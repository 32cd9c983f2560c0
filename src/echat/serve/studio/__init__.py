"""The studio: every task of a model in the browser, for looking and listening closely."""
