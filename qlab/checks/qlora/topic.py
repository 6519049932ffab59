"""The name of topic 10, for all of its checks."""

TOPIC = "10_qlora"
