"""Grading that can be trusted: the learner's code runs in a sandbox, the judge outside it never executes a line of it."""
