"""Inference: encoded support + query volume -> scores of every organ."""
