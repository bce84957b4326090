"""What a user brings and takes away: pictures, masks, subjects and edits, as arrays and files.

images    reading, writing and resizing pictures
masks     masks of pixels, and the way from pixels to tokens
subjects  references: their pictures, masks and places
edits     pictures of which a part is kept
figures   contact sheets and overlays
"""
