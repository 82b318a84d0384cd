"""The comparison of optimisers: problems, learners, tables."""
