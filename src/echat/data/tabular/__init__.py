"""Import of tables: CSV, TSV, JSON lines, Parquet, Hugging Face data sets, WebDataset, folders of sound."""
