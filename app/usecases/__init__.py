"""The rules of a run, each readable in one screen. No framework, no driver."""
