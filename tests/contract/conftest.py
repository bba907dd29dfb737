"""Fixtures of the contract suites; each suite keeps its own in a module beside it."""

from s3_servers import ceph_s3, embedded_s3, nodes, variant

__all__ = ["ceph_s3", "embedded_s3", "nodes", "variant"]
