"""Sound in, images out: decoding, the front end, datasets, the synthesiser, the image store."""
