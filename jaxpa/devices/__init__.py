"""The machines: how networks are spread over them, what a run costs, how fast it is.

sharding  which device holds which part of which parameter
cost      FLOPs, bytes and forwards, from configurations alone
memory    what a run takes, and what this machine has
plan      what a run will take, before anything loads
bench     how fast the network runs on this machine
timing    compiling apart from running, stage by stage
"""
