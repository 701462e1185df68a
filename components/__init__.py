"""The pipeline's steps, one a file: typed inputs and outputs; the work itself is one call into `twophase`.

A step's function is shipped as source inside the compiled spec, so it imports what it needs in its body.
"""

IMAGE = "twophase/trainer:0.1.0-python3.11"
"""The image that every step runs in, where steps run in images."""
