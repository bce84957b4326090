"""What a user brings and takes away: pictures, masks, subjects and edits, as arrays and files.

masks      masks of pixels, and the way from pixels to tokens
figures    contact sheets and overlays
images     reading, writing and resizing pictures
places     where a subject goes on the canvas
subjects   references: their pictures, masks and places
edits      pictures of which a part is kept
edges      edges of a control picture
"""
