"""Skriptoteket: small Python tools for school staff, run from a web page."""
