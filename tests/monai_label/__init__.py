"""The check against a real MONAI Label server."""
