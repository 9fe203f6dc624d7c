"""What a process knows of the container image that it runs in (containers/Containerfile, containers/sif.sh)."""

from __future__ import annotations

import os


def image_variant() -> str | None:
    """What the image was built for, "cuda" or "cpu"; None outside of any."""
    return os.environ.get("COSMICAI_IMAGE_VARIANT") or None


def image_digest() -> str | None:
    """The digest of the image's manifest; None outside of any, or where nobody has told it.

    An image cannot hold its own digest: a SIF brings it along, other platforms set COSMICAI_IMAGE_DIGEST.
    """
    return os.environ.get("COSMICAI_IMAGE_DIGEST") or None
