"""Keeps the newest good checkpoint of each run safe outside the watched directories."""
