"""The `jaxpa` command.

main         the list of commands; errors in one line
parse        from words to commands; help
pictures     generate, personalize, inpaint, outpaint, edit
invert       a picture to noise and back
mask         the command that makes masks
lines        the lines of a batch as commands that have been checked
urls         the lines of a batch whose files go to a URL
signals      SIGTERM, in one place
session      a run of a batch, by the process that holds the journal
batch        a file of lines, worked through; how far it is
replay       a picture again, from what stands in it
app          a page in the browser
plan         what a run would cost
bench        how fast this machine is
checkpoints  convert, info
picturing    a command that answers a request, from flags to written pictures
command      what commands share: a checkpoint, files to write, a report
start        --from: the words of an earlier picture
flags        the types of flags, the grammar of subjects
spell        a request as the words that ask for it
words        what is wrong with a word, in a line
files        which files are written, numbered, replaced, refused
console      progress, warnings, JSON lines, the cache of programs
"""
