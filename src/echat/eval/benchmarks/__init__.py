"""The benchmarks of `echat eval`: every module here is one, under the name of its file."""
