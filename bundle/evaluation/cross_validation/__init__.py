"""Cross-validation: train and evaluate every fold, and write one table that can be trusted (``__main__``)."""
