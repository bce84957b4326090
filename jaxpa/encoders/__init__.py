"""The networks around the MM-DiT, and their tokenizers: prompts and pictures in, arrays out.

autoencoder  pictures <-> latents
t5, clip     token ids -> the text tokens `txt`, the pooled vector `vec`
vision       pictures -> their tokens: SigLIP's, CLIP's, FLUX.1-Redux's
vocabulary   a tokenizer's files, and the ids that it can give
text         prompts -> both, through the two tokenizers
"""
