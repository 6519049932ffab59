"""Which topic these checks belong to."""

TOPIC = "11_smaller_models"
