"""The `jaxpa` command.

main      the list of commands; errors in one line
pictures  generate, personalize, inpaint, outpaint, invert
mask      the command that makes masks
batch     a file of commands
tools     plan, convert, bench, info
options   flags that commands share
console   the grammar of subjects, progress, files, JSON lines
"""
