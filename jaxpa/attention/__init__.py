"""Which tokens attend to which: attention maps of a run, and masks that are found in them.

maps     observers of a block, and reductions of its probabilities
observe  the maps of a generation or an inversion; a mask from a word
"""
