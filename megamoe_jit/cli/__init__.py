"""Thin commands over the package: each file is one command."""
