"""Answers predictions of a release: LiteRT behind bare ASGI, no TensorFlow; the same program in every place."""
