"""Judges score the candidates of a search, one file per judge."""
