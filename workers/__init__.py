"""Queue workers: claim a run, stage its files, execute it in a sandbox, finish it."""
