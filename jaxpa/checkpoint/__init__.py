"""Files on disk -> networks: where a checkpoint is, what it holds, whether it is sound, and its weights.

documents  JSON files, read strictly
files   safetensors files: headers, mapped tensors, a streaming writer
gguf    GGUF files: headers, tensors in blocks of few bits
scales  what stands beside weights of eight bits in other programs' files
keys    which stored tensors make which parameter, as tables
parts   one component as its headers describe it, with every fault
single  single files: components by the names of their tensors, configurations from shapes
fingerprint  which checkpoint it is, in one hash
fit     whether components belong together
hub     checkpoints of the Hugging Face hub
remote  files at URLs
source  a name, a path or a hub id -> the components
reading    a parameter's numbers on the host: as stored, widened, rounded or edited
residence  how a platform wants a transformer to lie in its memory
stages  networks that take turns in memory
load    components -> networks
redux   FLUX.1-Redux: a picture -> text tokens
convert  any checkpoint -> a folder in the networks' own layout
report  what `jaxpa info` says
"""
