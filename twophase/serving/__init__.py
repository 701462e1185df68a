"""Answers predictions of releases over HTTP, without TensorFlow."""
