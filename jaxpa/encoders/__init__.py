"""The networks around the MM-DiT, and their tokenizers: prompts and pictures in, arrays out.

autoencoder  pictures <-> latents
t5, clip     token ids -> the text tokens `txt`, the pooled vector `vec`
vocabulary   a tokenizer's files, and the ids that it can give
text         prompts -> both, through the two tokenizers
"""
