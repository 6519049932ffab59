"""Checks that teach: one file per topic on top of `report` (verdicts), `learner` (calls) and `expect` (results)."""
