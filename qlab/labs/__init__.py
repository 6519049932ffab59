"""Labs: built from the solutions (`build`), copied and refreshed for the learner (`copies`), executed (`execute`)."""
