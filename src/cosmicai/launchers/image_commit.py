"""Whether a container image and the code outside of it are of the same commit."""

from __future__ import annotations

from collections.abc import Iterator


def commit_notices(image: str, built_from: str | None, commit: str | None) -> Iterator[str]:
    """Yield what a user of code of this commit should know about an image; nothing if commits agree or are unknown."""
    if commit and built_from and commit != built_from:
        yield (
            f"{image} was built from commit {built_from} and the code outside is of {commit}; build the image anew, or "
            "check its commit out"
        )
