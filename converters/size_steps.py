"""Metadata of a model with free height and width whose sizes go in steps: which sizes it accepts."""

from __future__ import annotations

from collections.abc import Mapping

from imae.converters.preprocessing import size_text

SIZE_STEP = "imae.size_step"
ONE_SIZE = "imae.one_size"


def size_steps(step: int, height: int, width: int) -> dict[str, str]:
    """Metadata: one size that the model accepts, and the step from one size to the next."""
    return {ONE_SIZE: size_text((height, width)), SIZE_STEP: str(step)} if step > 1 else {}


def size_advice(metadata: Mapping[str, str]) -> str:
    """For the end of an error: the sizes that a model accepts; "" without this metadata."""
    if SIZE_STEP not in metadata or ONE_SIZE not in metadata:
        return ""
    return (
        f"; its images must be {metadata[ONE_SIZE]}, or higher, lower, wider or narrower by a multiple of "
        f"{metadata[SIZE_STEP]}"
    )
