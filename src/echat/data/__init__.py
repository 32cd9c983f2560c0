"""Records on disk become batches: read, mix, augment, render, bucket, collate."""
