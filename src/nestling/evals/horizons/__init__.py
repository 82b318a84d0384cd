"""How many levels, and how slow the slowest: long documents read by one to four levels (arXiv 2512.24695, Figure 7)."""
