"""The networks that give the velocity: everything that a checkpoint, a plan or a device must know of each of them.

tables    what such knowledge is written in: stored tensors, components, layers and their work
shapes    what the shapes of a file's tensors tell
backbone  one network as one object
variants  FLUX.1's sister models: what each reads, and what suits it
flux      FLUX.1
registry  all of them: a new network is its own file and a line there
"""
