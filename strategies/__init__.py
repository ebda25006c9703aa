"""Strategies: what a collective does. One file per strategy."""
