"""Techniques of small models, each behind one optional key of a recipe: Muon, induction heads, prefix CTC."""
