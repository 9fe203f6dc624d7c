"""Test that no torch.save file is executed, damage is an InputError, and tensors equal those of torch.load."""

from __future__ import annotations

import copyreg
import itertools
import os
import pickle
import random
import resource
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from cosmicai.errors import InputError, UnsafePickleError
from cosmicai.models.checkpoint_import import import_checkpoint
from cosmicai.models.pickle_scan import CHECKPOINT_LIMITS, PARTITION_LIMITS
from cosmicai.models.torch_archive import StandIn, TensorRef, read_archive
from cosmicai.storage.ranges import open_ranges
from cosmicai.surveys.shard import open_shard
from support.upstream_network import Sizes, random_network, save_checkpoint

SMALL = Sizes(depth=1)


def read_galaxies(uri: str) -> None:
    with open_shard(uri) as shard:
        shard.read(0, shard.galaxies)


READERS: dict[str, Callable[[str], object]] = {"weights": import_checkpoint, "galaxies": read_galaxies}
both = pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())


def read_root(path: Path, allowed: tuple[str, ...] = ()) -> Any:
    """Read the root object of an archive, with tensors as arrays."""
    with open_ranges(str(path)) as reader:
        root = read_archive(str(path), reader, allowed, CHECKPOINT_LIMITS).root
        return {name: ref.read(reader) for name, ref in root.items()} if isinstance(root, dict) else root


def write_archive(
    path: Path, description: bytes, entries: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED
) -> Path:
    """Write a file as torch.save does, with any pickle."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in {
            "data.pkl": description,
            "byteorder": b"little",
            "version": b"3\n",
            **(entries or {}),
        }.items():
            archive.writestr(f"archive/{name}", content)
    return path


def entries_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def rewrite(path: Path, **changes: bytes | None) -> Path:
    """Replace entries of the file, or remove those that are None, with correct checksums."""
    entries = {name: content for name, content in (entries_of(path) | changes).items() if content is not None}
    return write_archive(path, entries.pop("data.pkl"), entries)


# Files that try to do more than describe data.


class Reduced:
    """An object that is pickled as a call of any function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@both
def test_a_command_in_a_pickle_is_refused_by_name_and_not_run(read: Callable[[str], object], tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    torch.save(Reduced(os.system, f"touch {marker}"), tmp_path / "a.pt")
    with pytest.raises(UnsafePickleError, match=r"names posix\.system, which is not among the globals"):
        read(str(tmp_path / "a.pt"))
    assert not marker.exists()
    torch.load(tmp_path / "a.pt", weights_only=False)  # the file does what it says where it is trusted
    assert marker.exists()


@both
def test_a_command_deep_in_a_checkpoint_is_not_run(read: Callable[[str], object], tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    model = random_network(SMALL)
    model.blocks[0].attn.note = Reduced(os.system, f"touch {marker}")  # type: ignore[union-attr]
    uri = save_checkpoint(tmp_path / "a.pt", model)
    with pytest.raises(UnsafePickleError):
        read(uri)
    with pytest.raises(UnsafePickleError, match=r"names posix\.system"):
        import_checkpoint(uri)
    assert not marker.exists()


def test_a_command_in_the_tensors_of_a_partition_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    dataset = TensorDataset(torch.ones(2, 5, 32, 32), torch.ones(2, 5), torch.ones(2))
    dataset.tensors = (*dataset.tensors[:2], Reduced(os.system, f"touch {marker}"))  # type: ignore[arg-type]
    torch.save(dataset, tmp_path / "a.pt")
    with pytest.raises(UnsafePickleError, match=r"names posix\.system"):
        open_shard(str(tmp_path / "a.pt"))
    assert not marker.exists()


def text(value: str) -> bytes:
    """Return the opcode that pushes a string."""
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def stack_global(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


LINEAR = b"ctorch.nn.modules.linear\nLinear\n"
REBUILD = b"ctorch._utils\n_rebuild_parameter\n"
ORDERED = b"ccollections\nOrderedDict\n"
CALL = text("open('MARKER', 'w')") + b"\x85R."  # with one argument, and stop
FORBIDDEN = {
    "eval": (b"\x80\x02c__builtin__\neval\n" + CALL, "__builtin__.eval"),
    "exec": (b"\x80\x02cbuiltins\nexec\n" + CALL, "builtins.exec"),
    "open": (b"\x80\x02cbuiltins\nopen\n" + text("MARKER") + text("w") + b"\x86R.", "builtins.open"),
    "getattr": (b"\x80\x02cbuiltins\ngetattr\n" + ORDERED + text("fromkeys") + b"\x86R.", "builtins.getattr"),
    "operator": (b"\x80\x02coperator\nattrgetter\n" + text("__globals__") + b"\x85R.", "operator.attrgetter"),
    "import": (b"\x80\x02cbuiltins\n__import__\n" + text("os") + b"\x85R.", "builtins.__import__"),
    "subprocess": (b"\x80\x02csubprocess\nPopen\n" + CALL, "subprocess.Popen"),
    "code objects": (b"\x80\x02ctypes\nCodeType\n)R.", "types.CodeType"),
    "copyreg": (b"\x80\x02ccopyreg\nadd_extension\n)R.", "copyreg.add_extension"),
    "a nested pickle": (b"\x80\x02c_pickle\nloads\n" + CALL, "_pickle.loads"),
    "a nested torch.load": (b"\x80\x02ctorch.storage\n_load_from_bytes\n" + CALL, "torch.storage._load_from_bytes"),
    "torch.load": (b"\x80\x02ctorch.serialization\nload\n" + CALL, "torch.serialization.load"),
    "torch.compile": (b"\x80\x02ctorch\ncompile\n" + CALL, "torch.compile"),
    "a name with dots": (b"\x80\x04" + stack_global("collections", "OrderedDict.fromkeys") + CALL, "fromkeys, "),
    "the globals of a function": (
        b"\x80\x04" + stack_global("torch._utils", "_rebuild_parameter.__globals__") + b".", "parameter.__globals__, ",
    ),
    "the class of a class": (b"\x80\x04" + stack_global("torch", "FloatStorage.__class__") + b".", "__class__, "),
    "a module and no name": (b"\x80\x04" + stack_global("os", "") + b".", "names os.,"),
    "the own module": (
        b"\x80\x04" + stack_global("cosmicai.models.torch_archive", "StandIn") + b".",
        "torch_archive.StandIn",
    ),
    "the opcode OBJ, memorised": (b"\x80\x02(cposix\nsystem\nq\x00h\x00" + text("a") + b"o.", "posix.system"),
    "the opcode OBJ": (b"\x80\x02(cposix\nsystem\n" + text("touch MARKER") + b"o.", "posix.system"),
    "the opcode NEWOBJ": (b"\x80\x02csubprocess\nPopen\n" + text("touch MARKER") + b"\x85\x81.", "subprocess.Popen"),
    "the opcode NEWOBJ_EX": (b"\x80\x04csubprocess\nPopen\n" + text("true") + b"\x85}\x92.", "subprocess.Popen"),
    "no protocol": (b"cposix\nsystem\n" + CALL, "posix.system"),
    "protocol 5": (b"\x80\x05" + stack_global("posix", "system") + CALL, "posix.system"),
}  # fmt: skip


@both
@pytest.mark.parametrize(("description", "named"), FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_every_way_to_a_forbidden_global_is_refused_by_name(
    read: Callable[[str], object],
    description: bytes,
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsafePickleError) as refusal:
        read(str(write_archive(tmp_path / "a.pt", description)))
    assert named in str(refusal.value)
    assert not (tmp_path / "MARKER").exists()


@both
def test_an_extension_code_does_not_bypass_the_allow_list(read: Callable[[str], object], tmp_path: Path) -> None:
    uri = str(write_archive(tmp_path / "a.pt", b"\x80\x02\x82\xf0" + CALL))
    copyreg.add_extension("posix", "system", 0xF0)
    try:
        with pytest.raises(InputError, match="its pickle holds the instruction EXT1, which no file"):
            read(uri)
    finally:
        copyreg.remove_extension("posix", "system", 0xF0)


def build_with(target: bytes, name: str, value: bytes) -> bytes:
    """Return BUILD opcodes that set an attribute, first in the object's __dict__, then through setattr."""
    state = b"}" + text(name) + value + b"s"
    return b"\x80\x02" + target + state + b"b" + target + b"N" + state + b"\x86b."


TARGETS = {
    "a class": LINEAR,
    "a stand-in": LINEAR + b")R",
    "a stand-in not initialised": LINEAR + b")\x81",
    "a function": REBUILD,
    "a type": ORDERED,
    "a dictionary": ORDERED + b")R",
    "a storage type": b"ctorch\nFloatStorage\n",
}
NAMES = ("__setstate__", "__code__", "__class__", "__dict__", "__call__", "__new__", "__reduce__", "__init_subclass__")


@both
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_a_state_changes_nothing_but_the_description(
    read: Callable[[str], object], target: bytes, tmp_path: Path
) -> None:
    before = vars(StandIn).copy(), vars(OrderedDict).copy()
    for name, value in itertools.product(NAMES, (REBUILD, LINEAR, ORDERED, b"}", b"N")):
        with pytest.raises(InputError):
            read(str(write_archive(tmp_path / "a.pt", build_with(target, name, value))))
        assert (vars(StandIn), vars(OrderedDict)) == before
    assert StandIn().state == {}
    with open_ranges(str(write_archive(tmp_path / "b.pt", b"\x80\x02" + LINEAR + b")R."))) as reader:
        allowed = ("torch.nn.modules.linear.Linear",)
        assert read_archive("b.pt", reader, allowed, CHECKPOINT_LIMITS).root.state == {}


class ShadowItems(Reduced):
    """A replacement of a dictionary's method: it works here, and is unpickled as a layer."""

    def __init__(self, of: dict[str, nn.Module]) -> None:
        super().__init__(nn.Linear, 1, 1)
        self.found = list(of.items())

    def __call__(self) -> list[tuple[str, nn.Module]]:
        return self.found


@pytest.mark.parametrize("where", ["", "module", "module.blocks.0.attn"], ids=["outside", "model", "attention"])
def test_methods_of_a_dictionary_that_a_pickle_replaced_do_no_harm(where: str, tmp_path: Path) -> None:
    wrapped = nn.DataParallel(random_network(SMALL))
    modules: Any = OrderedDict(wrapped.get_submodule(where)._modules)
    modules.items = ShadowItems(modules)  # pickled with the dictionary: a call of its items() calls a stand-in
    wrapped.get_submodule(where).__dict__["_modules"] = modules
    with pytest.raises(InputError, match="is of another architecture"):
        import_checkpoint(save_checkpoint(tmp_path / "a.pt", wrapped, wrapped=False))


def test_objects_that_were_made_without_their_initialiser_are_refused(tmp_path: Path) -> None:
    new = b")\x81."  # cls.__new__(cls), and no state
    model = write_archive(tmp_path / "a.pt", b"\x80\x02cblocks.model_vit_inception\nViT_Astro\n" + new)
    with pytest.raises(InputError, match="the model has no module patch_embed"):
        import_checkpoint(str(model))
    wrapper = write_archive(tmp_path / "b.pt", b"\x80\x02ctorch.nn.parallel.data_parallel\nDataParallel\n" + new)
    with pytest.raises(InputError, match="the model has no module module"):
        import_checkpoint(str(wrapper))
    dataset = write_archive(tmp_path / "c.pt", b"\x80\x02ctorch.utils.data.dataset\nTensorDataset\n" + new)
    with pytest.raises(InputError, match="holds no TensorDataset"):
        open_shard(str(dataset))


def test_a_module_that_holds_itself_is_imported_once(tmp_path: Path) -> None:
    model = random_network(SMALL)
    expected = import_checkpoint(save_checkpoint(tmp_path / "a.pt", model))
    model.blocks[0]._modules["outer"] = model.blocks[0]
    found = import_checkpoint(save_checkpoint(tmp_path / "b.pt", model, wrapped=False))
    assert found.config == expected.config
    assert all(np.array_equal(found.tensors[name], tensor) for name, tensor in expected.tensors.items())


def test_modules_held_twice_on_many_levels_are_visited_once(tmp_path: Path) -> None:
    model = random_network(SMALL)
    inner: nn.Module = nn.Sequential()
    for _ in range(60):  # 2**60 paths lead to the innermost
        inner = nn.Sequential(inner, inner)
    model.inner = inner
    assert import_checkpoint(save_checkpoint(tmp_path / "a.pt", model, wrapped=False)).config.depth == 1


GREEDY = {
    "a memo index": b"\x80\x02Nr\xff\xff\xff\xff.",
    "bytes": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x0fabc.",
    "a bytearray": b"\x80\x05\x96" + b"\xff" * 7 + b"\x0fabc.",
    "a frame": b"\x80\x04\x95" + b"\xff" * 8 + b"N.",
    "a string": b"\x80\x02T\xff\xff\xff\x7fabc.",
}


@both
@pytest.mark.parametrize("description", GREEDY.values(), ids=GREEDY.keys())
def test_a_few_bytes_that_request_gigabytes_do_not_allocate_them(
    read: Callable[[str], object], description: bytes, tmp_path: Path
) -> None:
    uri = str(write_archive(tmp_path / "a.pt", description))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError):
        read(uri)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # KiB


# Files with impossible descriptions.


def push(value: object) -> bytes:
    """Return the opcodes that push a value."""
    return pickle.dumps(value, 2)[2:-1]


def tensor_pickle(
    offset: object = 0, size: object = (4,), stride: object = (1,), *, tag: object = "storage", key: object = "0",
    count: object = 4, kind: bytes = b"ctorch\nFloatStorage\n",
) -> bytes:  # fmt: skip
    """Return the pickle of {"a": tensor} in torch's format."""
    storage = b"(" + push(tag) + kind + push(key) + push("cpu") + push(count) + b"tQ"
    arguments = push(offset) + push(size) + push(stride) + b"\x89" + ORDERED + b")R"
    return b"\x80\x02}" + text("a") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + arguments + b"tRs."


VALUES = np.arange(4, dtype="<f4")


def write_tensor(path: Path, **how: Any) -> Path:
    return write_archive(path, tensor_pickle(**how), {"data/0": VALUES.tobytes()})


def test_the_hand_written_description_is_the_one_torch_reads(tmp_path: Path) -> None:
    path = write_tensor(tmp_path / "a.pt", offset=1, size=(3,), stride=(1,))
    assert read_root(path)["a"].tolist() == torch.load(path, weights_only=True)["a"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"tag": "module"}, "unknown persistent id 'module'"),
        ({"tag": None}, "unknown persistent id None"),
        ({"key": "1"}, "its storage 1 is missing"),
        ({"key": "../byteorder"}, "its storage ../byteorder is missing"),
        ({"key": ("0",)}, "is missing"),
        ({"count": 5}, "storage 0 is shorter than it says"),
        ({"count": 2**62}, "storage 0 is shorter than it says"),
        ({"count": "4"}, "its pickle cannot be read"),
        ({"kind": b"ctorch\nDoubleStorage\n"}, "storage 0 is shorter than it says"),
        ({"kind": b"N"}, "its pickle cannot be read"),
        ({"kind": ORDERED}, "its pickle cannot be read"),
        ({"kind": b"ctorch\nComplexFloatStorage\n"}, "names torch.ComplexFloatStorage"),
        ({"offset": 5}, "a tensor reaches past its storage"),
        ({"offset": 1}, "a tensor reaches past its storage"),
        ({"offset": 2**70}, "a tensor reaches past its storage"),
        ({"offset": -1}, "a negative or non-integer size"),
        ({"offset": 0.0}, "a negative or non-integer size"),
        ({"offset": None}, "a negative or non-integer size"),
        ({"offset": 5, "size": (0,)}, "a tensor reaches past its storage"),
        ({"stride": (2,)}, "a tensor reaches past its storage"),
        ({"stride": (2**62,)}, "a tensor reaches past its storage"),
        ({"stride": (2**70,)}, "a tensor reaches past its storage"),
        ({"stride": (-1,)}, "a negative or non-integer size"),
        ({"stride": ()}, "a tensor reaches past its storage"),
        ({"stride": (1, 1)}, "a tensor reaches past its storage"),
        ({"stride": 1}, "its pickle cannot be read"),
        ({"size": (5,)}, "a tensor has more elements than its storage"),
        ({"size": (2**62,), "stride": (0,)}, "a tensor has more elements than its storage"),
        ({"size": (2**40, 2**40), "stride": (0, 0)}, "a tensor has more elements than its storage"),
        ({"size": (-4,)}, "a negative or non-integer size"),
        ({"size": ("4",)}, "a negative or non-integer size"),
        ({"size": "4"}, "a negative or non-integer size"),
        ({"size": None}, "its pickle cannot be read"),
    ],
    ids=str,
)
def test_an_impossible_tensor_is_refused(how: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refusal:
        read_root(write_tensor(tmp_path / "a.pt", **how))
    assert says in str(refusal.value)


@both
@pytest.mark.parametrize(
    ("opcodes", "instruction"),
    [
        (b"(" + text("touch MARKER") + b"iposix\nsystem\n", "INST"), (b"(" + ORDERED + b"o", "OBJ"),
        (ORDERED + b")}\x92", "NEWOBJ_EX"), (b"\x8f", "EMPTY_SET"), (b"\x8f(K\x01\x90", "EMPTY_SET"),
        (b"(K\x01\x91", "FROZENSET"), (b"\x96" + bytes(8), "BYTEARRAY8"), (b"\x97", "NEXT_BUFFER"),
        (b"C\x00", "SHORT_BINBYTES"), (b"N2", "DUP"), (b"I1\n", "INT"), (b"(d", "DICT"), (b"Va\n", "UNICODE"),
        (b"Pstorage\n", "PERSID"), (b"\x8b\x00\x00\x00\x00", "LONG4"),
    ],
)  # fmt: skip
def test_an_instruction_that_no_saved_tensor_needs_is_refused_by_name(
    read: Callable[[str], object], opcodes: bytes, instruction: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=rf"holds the instruction {instruction}, .* save it again with torch\.save"):
        read(str(write_archive(tmp_path / "a.pt", b"\x80\x02" + opcodes + b".")))


DEEP = b")" + b"\x85" * 3_000_000  # whose hash ends the process
SHARED = b")" + b"2\x86" * 60  # with 2**60 values
MEMOISED = b")" + b"q\x00h\x00\x86" * 30  # with 2**30, from instructions that are allowed
OBJECT = b"ctorch._utils\n_rebuild_tensor_v2\n"
EXHAUSTING = {
    "a deep tuple as a key": (b"})" + b"\x85" * 3_000_000 + b"K\x01s.", "is refused"),
    "a deep tuple": (DEEP + b".", "is refused"),
    "a tuple a little too deep": (b")" + b"\x85" * 501 + b".", "more than (32|500) levels of values within values"),
    "deep lists": (b"]" * 400 + b"a" * 399 + b".", "more than 32 levels|holds no TensorDataset|holds a list"),
    "a shared tuple as a key": (b"}" + SHARED + b"K\x01s.", "holds the instruction DUP"),
    "a memorised tuple as a key": (b"}" + MEMOISED + b"K\x01s.", "keys other than text and integers"),
    "a tuple as one of many keys": (b"}(K\x01K\x01)K\x01u.", "keys other than text and integers"),
    "a key that is None": (b"}NK\x01s.", "keys other than text and integers"),
    "a dictionary from items": (ORDERED + b"]" + MEMOISED + b"K\x01\x86a\x85R.", "is damaged|more than 32 levels"),
    "a set of tuples": (b"c__builtin__\nset\n]" + MEMOISED + b"a\x85R.", "names __builtin__.set|a set of other"),
    "a storage of a shared name": (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + MEMOISED + text("cpu") + b"K\x01tQ.", "of the name tuple",
    ),
    "an unknown kind of storage": (b"(" + MEMOISED + b"NNNNtQ.", "unknown persistent id tuple"),
    "a storage that is not one": (b"(" + text("storage") + MEMOISED + b"NNNtQ.", "the type of a storage is tuple"),
    "tensors of a shared tuple": (OBJECT + b"(" + MEMOISED + b"NNNtR.", "is damaged"),
    "a long stack": (b"\x80\x02" + b"]" * (20 << 20) + b".", "is larger than any model or partition needs"),
    "a stack a little too long": (b"\x80\x02" + b"N" * 10_001 + b".", "more than (512|10000) values on its stack"),
    "marks": (b"(" * 10_001 + b".", "more than (512|10000) values on its stack"),
    "many instructions": (b"N0" * 2**20 + b".", "is larger than any|more than 1048576 instructions"),
    "many values in the memo": (b"".join(b"Nr" + n.to_bytes(4, "little") + b"0" for n in range(2**18 + 1)) + b".",
                                "is larger than any|more than 262144 values in its memo"),
    "a long number": (b"\x8a\xff" + b"\x7f" * 255 + b".", "more than 128 bits in a number"),
    "gigabytes of zeros": (b"\x80\x05\x96" + (3 << 30).to_bytes(8, "little") + b".", "is damaged|BYTEARRAY8"),
}  # fmt: skip


@both
@pytest.mark.parametrize(("description", "says"), EXHAUSTING.values(), ids=EXHAUSTING.keys())
def test_a_pickle_that_would_crash_hang_or_fill_memory_is_refused_at_once(
    read: Callable[[str], object], description: bytes, says: str, tmp_path: Path
) -> None:
    uri = str(write_archive(tmp_path / "a.pt", description))
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(InputError, match=says) as refusal:
        read(uri)
    assert len(str(refusal.value)) < 500
    assert time.process_time() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17  # KiB


def test_an_attribute_with_many_values_is_neither_compared_nor_shown(tmp_path: Path) -> None:
    model = random_network(SMALL)
    value: Any = ()
    for _ in range(60):
        value = (value, value)
    pool = next(layer for layer in model.inception_model.vis_inception if isinstance(layer, nn.AvgPool2d))
    pool.kernel_size, pool.stride = value, (*value,)
    with pytest.raises(InputError, match=r"kernel_size is tuple, not a plain value"):
        import_checkpoint(save_checkpoint(tmp_path / "a.pt", model))


# Bytes, instructions, depth, stack and memo of the pickles of a published partition and checkpoint.
PARTITION, CHECKPOINT = (365, 115, 8, 14, 32), (137_210, 56_374, 31, 371, 12_456)


def test_the_limits_are_far_above_what_published_files_need() -> None:
    for limits, used in ((PARTITION_LIMITS, PARTITION), (CHECKPOINT_LIMITS, CHECKPOINT)):
        found = (limits.size, limits.instructions, limits.depth, limits.stack, limits.memo)
        assert all(limit >= 4 * need for limit, need in zip(found, used, strict=True))


@pytest.mark.parametrize("opcodes", [b"NQ", b")Q", b"K\x01Q"])
def test_a_persistent_id_that_is_not_a_storage_is_refused(opcodes: bytes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="its pickle cannot be read"):
        read_root(write_archive(tmp_path / "a.pt", b"\x80\x02" + opcodes + b"."))


def write_partition(path: Path, count: int = 3) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(count, *shape, generator=generator) for shape in ((5, 32, 32), (5,), ())]
    torch.save(TensorDataset(tensors[0], tensors[1].double(), tensors[2].double()), path)
    return path


def write_small(path: Path, kind: str) -> Path:
    """Write a valid file for one of the READERS."""
    if kind == "galaxies":
        return write_partition(path)
    return Path(save_checkpoint(path, random_network(SMALL)))


kinds = pytest.mark.parametrize("kind", READERS.keys())


@kinds
def test_valid_files_are_read(kind: str, tmp_path: Path) -> None:
    path = write_small(tmp_path / "a.pt", kind)
    READERS[kind](str(path))
    READERS[kind](str(rewrite(path)))


def test_a_storage_that_is_shorter_than_stated_is_refused(tmp_path: Path) -> None:
    path = write_partition(tmp_path / "a.pt")
    with pytest.raises(InputError, match="storage 0 is shorter than it says"):
        open_shard(str(rewrite(path, **{"data/0": entries_of(path)["data/0"][:-1]})))


def test_a_storage_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="its storage 1 is missing"):
        open_shard(str(rewrite(write_partition(tmp_path / "a.pt"), **{"data/1": None})))


@kinds
def test_compressed_entries_are_refused(kind: str, tmp_path: Path) -> None:
    entries = entries_of(write_small(tmp_path / "a.pt", kind))
    description = entries.pop("data.pkl")
    packed = write_archive(tmp_path / "b.pt", description, entries, zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="is compressed; expected stored entries"):
        READERS[kind](str(packed))


@pytest.mark.parametrize("name", ["data.pkl", "byteorder", "data/0"])
@pytest.mark.parametrize(
    ("attribute", "value", "says"),
    [
        ("flag_bits", 1, "is compressed"),
        ("compress_type", zipfile.ZIP_DEFLATED, "is compressed"),
        ("compress_type", 77, "is compressed"),
        ("header_offset", 10, "is damaged|ends at byte|ends past|cannot read"),
        ("header_offset", 2**40, "is damaged|ends at byte|ends past|cannot read"),
    ],
)
def test_a_wrong_zip_directory_is_refused(name: str, attribute: str, value: int, says: str, tmp_path: Path) -> None:
    entries = {"data.pkl": tensor_pickle(), "byteorder": b"little", "data/0": VALUES.tobytes()}
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        for each, content in entries.items():
            archive.writestr(f"archive/{each}", content)
        setattr(archive.getinfo(f"archive/{name}"), attribute, value)  # after the local header was written
    with pytest.raises(InputError, match=says):
        read_root(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("name", "says"), [("data.pkl", "larger than any model or partition needs"), ("data/0", "ends past the end")]
)
def test_an_entry_that_claims_a_terabyte_is_refused(name: str, says: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("archive/data.pkl", tensor_pickle(size=(2**38,), count=2**38))
        archive.writestr("archive/data/0", VALUES.tobytes())
        archive.getinfo(f"archive/{name}").file_size = 2**40
    with pytest.raises(InputError, match=says):
        read_root(tmp_path / "a.pt")


@kinds
def test_a_file_of_a_big_endian_machine_is_refused(kind: str, tmp_path: Path) -> None:
    path = rewrite(write_small(tmp_path / "a.pt", kind), byteorder=b"big")
    with pytest.raises(InputError, match="was saved on a big-endian machine; expected little-endian"):
        READERS[kind](str(path))


def test_a_file_without_byteorder_is_read_as_little_endian(tmp_path: Path) -> None:
    read_galaxies(str(rewrite(write_partition(tmp_path / "a.pt"), byteorder=None)))


@both
def test_the_format_before_torch_1_6_is_refused(read: Callable[[str], object], tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"is not in the zip format of torch\.save \(torch 1\.6 or newer\)"):
        read(str(tmp_path / "a.pt"))


@both
def test_an_empty_file_is_refused(read: Callable[[str], object], tmp_path: Path) -> None:
    (tmp_path / "a.pt").touch()
    with pytest.raises(InputError, match="is empty; expected"):
        read(str(tmp_path / "a.pt"))


@both
@pytest.mark.parametrize("names", [["a/other"], ["data.pkl"], ["a/data.pkl", "b/data.pkl"]], ids=str)
def test_a_zip_of_something_else_is_refused(read: Callable[[str], object], names: list[str], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        for name in names:
            archive.writestr(name, b"\x80\x02N.")
    with pytest.raises(InputError, match=r"holds no data\.pkl; expected a file written by torch\.save"):
        read(str(tmp_path / "a.pt"))


@both
def test_a_folder_and_an_absent_file_are_refused(read: Callable[[str], object], tmp_path: Path) -> None:
    (tmp_path / "folder.pt").mkdir()
    for name in ("folder.pt", "absent.pt"):
        with pytest.raises(InputError, match="cannot read"):
            read(str(tmp_path / name))


@both
@pytest.mark.parametrize("content", [b"x", b"PK", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"hello" * 99, bytes(4096)])
def test_a_file_of_another_kind_is_refused(read: Callable[[str], object], content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(InputError):
        read(str(tmp_path / "a.pt"))


CUTS = [1, 3, 4, 21, 22, 29, 30, 63, 64, 100, 1000, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, -200, -98, -23, -22, -21, -4, -1]


@kinds
@pytest.mark.parametrize("cut", CUTS)
def test_a_truncated_file_is_refused_wherever_it_ends(kind: str, cut: float, tmp_path: Path) -> None:
    path = write_small(tmp_path / "a.pt", kind)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * cut) if isinstance(cut, float) else cut])
    with pytest.raises(InputError):
        READERS[kind](str(path))


def outcome(read: Callable[[str], object], path: Path) -> str:
    """Read a file that may be damaged; any exception other than InputError fails the test."""
    try:
        read(str(path))
    except InputError as error:
        return str(error)
    return "read"


@kinds
def test_random_damage_of_the_description_is_an_input_error_or_harmless(kind: str, tmp_path: Path) -> None:
    path = write_small(tmp_path / "a.pt", kind)
    description = entries_of(path)["data.pkl"]
    chance = random.Random(0)
    seen = set()
    for _ in range(200):
        damaged = bytearray(description)
        for _ in range(chance.choice([1, 1, 2, 8])):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        seen.add(outcome(READERS[kind], rewrite(path, **{"data.pkl": bytes(damaged)})))
    assert len(seen) > 10


@kinds
def test_random_damage_of_the_file_is_an_input_error_or_harmless(kind: str, tmp_path: Path) -> None:
    path = write_small(tmp_path / "a.pt", kind)
    content = path.read_bytes()
    start = content.rindex(b"PK\x01\x02", 0, content.index(b"PK\x01\x02") + 4)  # the zip directory
    chance = random.Random(1)
    seen = set()
    for _ in range(200):
        damaged = bytearray(content)
        where = chance.choice([range(start, len(content)), range(len(content))])
        damaged[chance.choice(where)] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        seen.add(outcome(READERS[kind], path))
    assert len(seen) > 3


# Tensors, against torch.load.


def same_as_torch(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    torch.save(tensors, path)
    expected = torch.load(path, weights_only=True)
    found = read_root(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        array = tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_read_as_torch_does(dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).mul(50).to(dtype)
    same_as_torch(tmp_path / "a.pt", {"a": values, "transposed": values.T, "part": values[1:, ::2], "none": values[:0]})


def test_infinities_and_nan_survive_bfloat16(tmp_path: Path) -> None:
    values = torch.tensor([float("inf"), -float("inf"), float("nan"), -0.0, 1e-40], dtype=torch.bfloat16)
    same_as_torch(tmp_path / "a.pt", {"a": values})


@pytest.mark.parametrize("dtype", [torch.complex64, torch.uint16, torch.float8_e4m3fn], ids=str)
def test_other_dtypes_are_refused_by_name(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3, dtype=dtype)}, tmp_path / "a.pt")
    with pytest.raises(UnsafePickleError, match=r"names torch\."):
        read_root(tmp_path / "a.pt")


BASE = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).view(2, 3, 4, 5)
VIEWS = {
    "a slice": BASE[1:],
    "a slice inside": BASE[:, 1:3, 1:, 2:4],
    "every other": BASE[:, ::2, :, ::3],
    "transposed": BASE.transpose(1, 3),
    "permuted": BASE.permute(3, 0, 2, 1),
    "channels last": BASE.contiguous(memory_format=torch.channels_last),
    "one value": BASE[1, 2, 3, 4],
    "of no dimension": torch.tensor(3.5),
    "empty": torch.empty(0),
    "empty slice": BASE[1:1],
    "empty with sizes": torch.empty(3, 0, 7),
    "sizes of 1": BASE[:1, :, :1],
    "diagonal": torch.diagonal(BASE[0], dim1=0, dim2=1),
    "overlapping windows": torch.arange(9.0).as_strided((3, 3), (1, 2)),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_every_view_is_read_as_torch_does(view: torch.Tensor, tmp_path: Path) -> None:
    same_as_torch(tmp_path / "a.pt", {"a": view})


def test_tensors_that_share_a_storage_are_read_as_torch_does(tmp_path: Path) -> None:
    same_as_torch(tmp_path / "a.pt", {"whole": BASE, "same": BASE, **VIEWS})
    assert sum(name.startswith("data/") for name in entries_of(tmp_path / "a.pt")) < 8


def test_parameters_and_buffers_are_read_as_torch_does(tmp_path: Path) -> None:
    same_as_torch(tmp_path / "a.pt", dict(nn.BatchNorm2d(3).state_dict()) | {"p": nn.Parameter(BASE.clone()).data})
    parameter = nn.Parameter(BASE.clone())
    parameter.note = "kept with it"  # type: ignore[attr-defined]  # pickled with its state
    torch.save({"a": nn.Parameter(BASE.clone()), "b": parameter}, tmp_path / "b.pt")
    assert [array.tolist() for array in read_root(tmp_path / "b.pt").values()] == [BASE.tolist()] * 2


def test_an_expanded_tensor_is_refused_with_a_remedy(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1).expand(1000)}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="a tensor has more elements than its storage; save a copy of it"):
        read_root(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("shape", "strides", "contiguous"),
    [((), (), True), ((3,), (1,), True), ((3,), (2,), False), ((2, 3), (3, 1), True), ((2, 3), (1, 2), False),
     ((1, 3), (7, 1), True), ((0, 3), (3, 1), True)],
)  # fmt: skip
def test_contiguity_is_that_of_c_order(shape: tuple[int, ...], strides: tuple[int, ...], contiguous: bool) -> None:
    assert TensorRef(0, "<f4", shape, strides).is_contiguous is contiguous


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ((torch.ones(2, 5, 32, 32),), "holds 1 tensors; expected image, magnitude and redshift"),
        ((torch.ones(2, 5, 32, 32),) * 4, "holds 4 tensors; expected image, magnitude and redshift"),
        ((torch.ones(2, 5, 32, 31), torch.ones(2, 5)), r"image has the shape \(2, 5, 32, 31\)"),
        ((torch.ones(2, 5, 32, 32).double(), torch.ones(2, 5)), "image is float64"),
        ((torch.ones(2, 5, 32, 32).bfloat16(), torch.ones(2, 5)), "image is bfloat16"),
        ((torch.ones(2, 5, 32, 32).mT, torch.ones(2, 5)), "image is not contiguous"),
        ((torch.ones(2, 5, 32, 32), torch.ones(2, 4)), r"magnitude has the shape \(2, 4\)"),
    ],
)
def test_partitions_of_other_tensors_are_refused(columns: tuple[torch.Tensor, ...], says: str, tmp_path: Path) -> None:
    torch.save(TensorDataset(*columns), tmp_path / "a.pt")
    with pytest.raises(InputError, match=says):
        open_shard(str(tmp_path / "a.pt"))


def test_a_partition_is_read_as_torch_does(tmp_path: Path) -> None:
    path = write_partition(tmp_path / "a.pt", 7)
    expected = torch.load(path, weights_only=False)[2:6]
    with open_shard(str(path)) as shard:
        found = [shard.read_field(name, 2, 6) for name in ("image", "magnitude", "redshift")]
    for array, tensor in zip(found, expected, strict=True):
        assert array.tobytes() == tensor.numpy().tobytes()
