"""Cross-validation: train and evaluate every fold, and write one table (``__main__``)."""
