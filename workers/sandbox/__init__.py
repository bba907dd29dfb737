"""What isolates a run. One contract, several implementations."""

from workers.sandbox.pick import open_sandbox

__all__ = ["open_sandbox"]
