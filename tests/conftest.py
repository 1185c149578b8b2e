"""Fixtures for all tests."""

from __future__ import annotations

# Before anything takes the distutils of Python 3.11: torch's compiler wants setuptools' own in their place, or fails.
import setuptools  # noqa: F401

pytest_plugins = ["tests.s3_server"]
