"""Optimisers as memories of gradients (arXiv 2512.24695, sections 4 and 7.2): pure updates in thin torch shells."""
