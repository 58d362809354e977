"""Converts checkpoints and adapters from one layout to another."""
