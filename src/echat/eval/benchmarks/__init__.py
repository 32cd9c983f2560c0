"""One file, one benchmark; each has `run(engine, ...)`, which returns a report that prints itself."""
