"""Bytes at rest: the archive directory, and transient versions in memory.

It knows of no model's rules, and of no network.
"""
