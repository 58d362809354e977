"""Benchmarks, also against other programs; docs/benchmarks.md takes its figures from them."""
