import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec import structs

from cosmicai.training.augmentation import MAX_SHIFT, Draws, augment, draw_augmentation, estimate_noise
from cosmicai.training.recipe import TrainingOptions

SHAPE = (200, 5, 32, 32)
OPTIONS = TrainingOptions()
STILL = MAX_SHIFT  # the shift that leaves a cutout where it is


def cutouts(count: int = SHAPE[0]) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).standard_normal((count, *SHAPE[1:]), np.float32))


def draws(symmetry: int = 0, shift: tuple[int, int] = (STILL, STILL), count: int = 1) -> Draws:
    return Draws(np.full(count, symmetry), np.full((count, 2), shift), np.zeros(count, np.float32), np.zeros((count, 0), np.float32))  # fmt: skip  # noqa: E501


def drawn(options: TrainingOptions = OPTIONS, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Draws:
    found = draw_augmentation(np.random.default_rng(seed), shape, options)
    assert found is not None
    return found


def test_the_eight_symmetries_are_all_turns_and_mirror_images_and_keep_every_value():
    image = cutouts(1)
    expected = [torch.rot90(part, turns, (2, 3)) for part in (image, image.flip(3)) for turns in range(4)]
    found = [augment(image, draws(symmetry)) for symmetry in range(8)]
    assert sorted(next(k for k, one in enumerate(expected) if torch.equal(one, other)) for other in found) == list(range(8))  # fmt: skip  # noqa: E501


@pytest.mark.parametrize(("top", "left"), [(0, 0), (4, 1), (2, 3)])
def test_a_shift_moves_the_cutout_and_mirrors_what_is_beyond_its_edge(top: int, left: int):
    image = cutouts(1)
    padded = np.pad(image.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")
    shifted = augment(image, draws(shift=(top, left)))
    assert np.array_equal(shifted.numpy(), padded[:, :, top : top + 32, left : left + 32])


def test_each_galaxy_of_a_batch_has_draws_of_its_own_and_all_are_drawn_alike():
    found = drawn(shape=(80000, 5, 32, 32))
    assert np.allclose(np.bincount(found.symmetry) / 10000, 1, atol=0.05)
    assert np.allclose(np.bincount(found.shift @ [5, 1]) / 3200, 1, atol=0.1)


def test_a_galaxy_is_augmented_in_a_part_of_the_batch_as_in_the_whole():
    image, found = cutouts(), drawn(structs.replace(OPTIONS, noise=1.0))
    whole = augment(image, found)
    parts = [augment(image[rows], found[rows]) for rows in (slice(0, 70), slice(70, 200))]
    assert torch.equal(torch.cat(parts), whole)


def test_the_same_generator_gives_the_same_bytes_and_leaves_the_input_as_it_is():
    image = cutouts()
    before = image.clone()
    once, again, other = (augment(image, drawn(structs.replace(OPTIONS, noise=0.5), seed)) for seed in (3, 3, 4))
    assert torch.equal(once, again) and not torch.equal(once, other)
    assert torch.equal(image, before)


def test_the_noise_of_a_cutout_is_that_of_its_sky():
    y, x = np.mgrid[:32, :32] - 15.5
    galaxy = 300 * np.exp(-(x**2 + y**2) / 18)
    deviation = np.array([0.5, 1, 2, 4, 8], np.float32)[:, None, None]
    found = estimate_noise(cutouts() * torch.from_numpy(deviation) + torch.from_numpy(galaxy).float())
    assert np.allclose(found.mean(0).numpy().ravel() / deviation.ravel(), 1, atol=0.1)


def test_noise_is_a_cutouts_own_times_at_most_the_factor():
    image, found = cutouts(), drawn(structs.replace(OPTIONS, noise=3.0))
    assert 0 <= found.depth.min() < 0.1 and 2.9 < found.depth.max() < 3
    found = dataclasses.replace(found, symmetry=draws(count=200).symmetry, shift=draws(count=200).shift)
    added = augment(image, found) - image
    expected = estimate_noise(image).numpy() * found.depth[:, None, None, None] * found.noise
    np.testing.assert_allclose(added.numpy(), expected, atol=2e-6)


def test_no_augmentation_draws_nothing():
    rng = np.random.default_rng(0)
    assert draw_augmentation(rng, SHAPE, structs.replace(OPTIONS, augment="none")) is None
    assert rng.random() == np.random.default_rng(0).random()


@pytest.mark.parametrize(
    ("raised", "sentence"),
    [
        (
            "RuntimeError('operator torchvision::nms does not exist')",
            "does not fit torch .* (operator torchvision::nms",
        ),
        ("ImportError('undefined symbol: x')", "does not fit torch .* (undefined symbol: x)"),
        ("AttributeError('no x')", "does not fit torch .* (no x)"),
        ("OSError('libcudart.so.13')", "does not fit torch .* (libcudart.so.13)"),
        ("ModuleNotFoundError('No module', name='PIL')", "does not fit torch .* (No module)"),
        ("ModuleNotFoundError('No module', name='torchvision')", "needs the package torchvision, which is not inst"),
    ],
)
def test_a_torchvision_that_cannot_be_imported_is_a_sentence(tmp_path: Path, raised: str, sentence: str):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text(f"raise {raised}\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from cosmicai.errors import InputError\n"
        "from cosmicai.training.augmentation import check_augmentation\n"
        "from cosmicai.training.recipe import TrainingOptions\n"
        "check_augmentation(TrainingOptions(augment='none'))\n"
        "try:\n    check_augmentation(TrainingOptions())\nexcept InputError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    begin, _, end = sentence.partition(" .* ")
    assert begin in done.stdout and end in done.stdout and "--augment none" in done.stdout
    assert done.stdout.count("\n") == 1
