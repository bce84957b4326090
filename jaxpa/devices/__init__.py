"""The machines: how networks are spread over them, what a run costs, and how fast it is.

sharding   which device holds which part of which parameter
cost       FLOPs, bytes and forwards, from configurations alone
memory     what a run takes, and what this machine has
plan       what a run will take, before anything loads
known      which runs find their programs compiled
targets    devices by the names under which they are rented
programs   what a command runs, with shapes and shardings in place of arrays
compiled   such a program compiled for a device that is not here, and what its compiler makes of it
hlo        what a compiled program does: loops, kernels, collectives, traffic
elsewhere  a plan for such a device, compiled or estimated
bench      how fast the network runs on this machine
processes  several processes as one
timing     compiling apart from running, stage by stage
"""
