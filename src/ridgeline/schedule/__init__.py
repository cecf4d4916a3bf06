"""Who runs next: the mechanism (budget, blocks, commit) and one file a policy."""
