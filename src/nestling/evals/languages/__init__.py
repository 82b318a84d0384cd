"""Languages that nobody speaks, learnt one after the other and translated back, alone and in sequence (after arXiv 2512.24695)."""
