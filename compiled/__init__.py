"""The compiled pipeline specs, checked in; `twophase compile` writes them."""
