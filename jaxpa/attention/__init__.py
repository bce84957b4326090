"""Who looks at whom: attention maps of a run, and masks that are found in them.

maps     observers of a block, and what is made of its probabilities
observe  runs that are looked at: maps of a generation or an inversion, a mask from a word
"""
