"""The container image that this process runs in, from the variables that containers/ puts into it."""

from __future__ import annotations

import os


def image_variant() -> str | None:
    """Return what the image was built for, "cuda" or "cpu"; None outside of an image."""
    return os.environ.get("COSMICAI_IMAGE_VARIANT") or None


def image_digest() -> str | None:
    """Return the digest of the image's manifest; None outside of an image, or if it is unknown.

    An image cannot contain its own digest: containers/sif.sh adds it to the SIF, and other platforms set
    COSMICAI_IMAGE_DIGEST.
    """
    return os.environ.get("COSMICAI_IMAGE_DIGEST") or None
