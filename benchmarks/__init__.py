"""Measurements against the peers: the figures of the README come from here."""
