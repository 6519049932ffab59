"""Which topic these checks belong to."""

TOPIC = "09_optimizers_8bit"
