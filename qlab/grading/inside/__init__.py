"""What runs inside the sandbox, next to the learner's code: nothing here is trusted by the judge."""
