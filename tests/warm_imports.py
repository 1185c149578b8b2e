"""What the process that others are forked from has loaded: everything that a driver and its lanes need."""

from contextlib import suppress

import boto3  # noqa: F401
import pytest.__main__  # noqa: F401
from diffusers import DDIMScheduler, StableDiffusionPipeline  # noqa: F401
from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

import tests.run_lab  # noqa: F401
from dgate_core.engine import batch_output, local, retry  # noqa: F401
from dgate_core.models.families import unet  # noqa: F401

with suppress(ImportError):
    import pandas  # noqa: F401 - pyarrow loads it where it is installed
