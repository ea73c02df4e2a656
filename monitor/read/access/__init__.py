"""Bytes and elements at their places: sources, windows, streams, archives, strides; no format is known here."""
