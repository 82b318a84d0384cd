"""Are weights that were trained through their own learning better learners than plain ones, at equal compute?"""
