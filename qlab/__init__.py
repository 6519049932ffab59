"""qlab: a course and lab on training large models with small means."""

__version__ = "0.1.0"
