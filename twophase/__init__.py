"""Two-phase predictions: a gate for the device and a classifier for the cloud, made and moved as one release."""

__version__ = "0.1.0"
