"""Where a release can be deployed."""
