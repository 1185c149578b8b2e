"""Guidance on part of the schedule: the last steps, which settle detail, are computed with the prompt alone.

Kynkäänniemi et al., Applying Guidance in a Limited Interval Improves Sample and Distribution Quality, 2024.
"""

from __future__ import annotations


def count_guided_steps(steps: int, guidance_stop: float) -> int:
    """How many of the first steps have guidance.

    Args:
        steps: Of the whole schedule.
        guidance_stop: Share with guidance, 0 to 1.
    """
    return min(steps, max(0, round(steps * guidance_stop)))
