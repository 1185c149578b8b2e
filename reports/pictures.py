"""The reader of a run's pictures, which lives with the runs."""

from dgate_core.runs.pictures import OPEN_CONTAINERS, PictureReader, read_picture

__all__ = ["OPEN_CONTAINERS", "PictureReader", "read_picture"]
