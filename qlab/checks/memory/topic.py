"""Which topic these checks belong to."""

TOPIC = "02_memory"
