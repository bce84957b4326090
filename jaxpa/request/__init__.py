"""What is asked for, as one value that Python, the commands, plans, evaluations and batches share.

spec        what a request has to fit: sizes, schedule and settings of a checkpoint, from its headers
taus        tau as words, numbers and JSON
groups      its parts: checkpoint, sampling, method, editing, starting, following
request     the whole
record      as JSON and back
code        as Python
provenance  how a picture was made, as it stands in the picture
origin      from a picture back to that
prepare     from a request's files to arrays
"""
