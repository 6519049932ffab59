"""Grading that can be trusted: submissions run in a sandbox, and the judge outside never executes a line of theirs."""
