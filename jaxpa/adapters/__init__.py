"""LoRAs: files in every common naming, merged into a checkpoint's weights or kept beside them.

spec    which file, and how strongly
names   what the keys of a file mean: formats, and the layers of a checkpoint under all their names
read    one file against a checkpoint's configuration, with every fault
lay     over the networks: merged as they are loaded, or kept as low-rank terms
report  what `jaxpa info` says
"""
