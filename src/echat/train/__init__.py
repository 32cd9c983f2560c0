"""Training: recipes, one trainer, and the objectives it trains."""
