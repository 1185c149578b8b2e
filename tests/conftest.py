"""Fixtures for all tests."""

from __future__ import annotations

pytest_plugins = ["tests.s3_server"]
