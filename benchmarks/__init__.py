"""Measurements of the claims that the documentation makes; each file is a program with ``--help``."""
