"""Teaching: recipes, one loop, and what there is to learn."""
