"""The cards of published recipes: the template, and for each recipe a run's record and its card."""
