"""Which topic these checks belong to."""

TOPIC = "07_checkpointing"
