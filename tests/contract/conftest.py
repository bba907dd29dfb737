"""Fixtures of the contract suites; each suite keeps its own in a module beside it."""

from s3_servers import ceph_s3, embedded_s3, nodes, variant
from sandboxes import sandbox

# One sandbox for all suites: two pools at once would each look like what a run left behind.
__all__ = ["ceph_s3", "embedded_s3", "nodes", "sandbox", "variant"]
