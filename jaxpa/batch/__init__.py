"""Many requests, worked through once each: on one machine, or on those of a Ray cluster.

table       what a file asks for: lines of commands, JSON objects, rows of a CSV table
names       templates of the pictures' names
lock        who writes a journal: one process, also where no file system can lock
journal     what is done, and what failed
recall      what its runs were asked for
groups      which pictures are sampled together, and how many
worker      samples, decodes and hands over, batch after batch
engine_ray  the same on every device of a cluster
"""
