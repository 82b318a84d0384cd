"""What each part of Hope gives: language models that lack one part each (arXiv 2512.24695, Table 6)."""
