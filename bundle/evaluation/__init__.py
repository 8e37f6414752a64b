"""Evaluation: predictions -> masks, overlays, metrics, tables and report pages."""
