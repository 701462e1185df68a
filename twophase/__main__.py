"""`python -m twophase` is the `twophase` program."""

from twophase.cli import main

main()
