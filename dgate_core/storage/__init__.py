"""Bytes under keys, in a folder or in an S3 bucket, behind one contract."""

from dgate_core.storage.contract import ObjectInfo, Storage
from dgate_core.storage.locations import open_object, open_storage, split_uri

__all__ = ["ObjectInfo", "Storage", "open_object", "open_storage", "split_uri"]
