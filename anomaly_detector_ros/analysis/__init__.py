"""Analysis: what an edit changed, in feature space, averaged over segments."""
