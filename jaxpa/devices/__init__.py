"""The machines: how networks are spread over them, what a run costs, how fast it is.

sharding  which device holds which part of which parameter
cost      FLOPs, bytes and forwards, from configurations alone
plan      what a run will take, before anything loads
bench     how fast the network runs on this machine
timing    compiling apart from running, stage by stage
"""
