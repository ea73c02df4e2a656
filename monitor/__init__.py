"""ckptwatch: the flight recorder for model weights."""

__version__ = "0.1.0"
