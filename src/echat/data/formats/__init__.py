"""Corpus formats: readers and writers of manifest, raw list, shard and combine (tar), and their indexes."""
