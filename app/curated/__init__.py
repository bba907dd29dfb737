"""Curated apps: tools that are kept here and run like any tool, under the curated policy.

A folder each: `app.py` is one self-contained script (standard library, skriptoteket_toolkit and
openpyxl) and `meta.json` is its catalogue entry. No module of the service imports an `app.py`.
The catalogue does not offer them yet: ADR-0024's second source kind is still to be wired.
"""
