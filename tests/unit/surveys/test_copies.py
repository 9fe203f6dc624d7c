"""Test which names of files are those of copies."""

import pytest

from cosmicai.surveys.copies import find_copies


@pytest.mark.parametrize(
    "copy",
    [
        "1.h5", "1.hdf5", "1.pt.h5", "1 (copy).pt", "1 (Copy).h5", "1 (another copy).pt", "1 (3rd copy).pt",
        "1 (copy 2).pt", "1 (1).pt", "1(2).pt", "1 copy.pt", "1 copy 2.pt", "1_copy.pt", "1-copy2.pt", "1.copy.pt",
        "1 - Copy.pt", "1 - Copy (2).pt", "1 - Kopie.pt", "1 - copia.pt", "Copy of 1.pt", "Copy (2) of 1.pt",
        "Copy of Copy of 1.pt", "Kopie von 1.pt", "1 (copy) (copy).pt", "1.bak.pt", "1_backup.pt", "1.orig.pt",
        "1~.pt", "1.~2~.pt",
    ],
)  # fmt: skip
def test_a_copy_beside_its_original_is_found(copy):
    assert find_copies(["1.pt", "2.pt", copy, "10.pt"]) == ["1.pt", copy]
    assert find_copies(["0.pt", copy, "2.pt"]) == []


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["1.pt", "2.pt", "10.pt", "11.pt"],
        ["000001.h5", "000002.h5"],
        ["1.h5", "2.pt", "01.pt"],
        ["sky (1).h5", "sky (2).h5"],
        ["sky-1.h5", "sky-2.h5", "sky 3.h5"],
        ["photo.h5", "photocopy.h5", "copy.h5", "copy2.h5", "original.h5"],
        ["A.pt", "a.pt"],
        ["of.pt", "copy of.pt"],
    ],
)
def test_other_names_are_not_those_of_copies(names):
    assert find_copies(names) == []


def test_copies_of_one_file_are_found_without_it():
    assert find_copies(["a.h5", "1 (copy).h5", "1 (another copy).h5"]) == ["1 (copy).h5", "1 (another copy).h5"]
    assert find_copies(["1 (1).h5", "1 (1) (copy).h5", "1 (2).h5"])[:2] == ["1 (1).h5", "1 (1) (copy).h5"]
