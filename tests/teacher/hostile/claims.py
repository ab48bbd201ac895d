"""Pickles that run nothing, but claim tensors that are not there, or cost more to read than they weigh."""

import struct
from pathlib import Path

from tests.teacher.hostile.making import (
    Maker,
    integer,
    integers,
    into,
    storage,
    tensor,
    text,
    torch_zip,
    weights_pickle,
)
from tests.teacher.zips import Entry

FILES: dict[str, Maker] = {}


@into(FILES)
def stride_zero(_: Path) -> bytes:
    """One number that claims to be 2^40: 1.6 kB that PyTorch accepts."""
    return torch_zip(weights_pickle(count=1, shape=[2**40], stride=[0]), Entry("archive/data/0", bytes(4)))


@into(FILES)
def windows_that_overlap(_: Path) -> bytes:
    """A view that repeats what is stored, as sliding windows do."""
    return torch_zip(weights_pickle(count=4, shape=[3, 2], stride=[1, 1]), Entry("archive/data/0", bytes(16)))


@into(FILES)
def offset_behind_the_storage(_: Path) -> bytes:
    """A view that starts where nothing is."""
    return torch_zip(weights_pickle(offset=2**40), Entry("archive/data/0", bytes(16)))


@into(FILES)
def negative_offset(_: Path) -> bytes:
    """A view that starts before its storage."""
    return torch_zip(weights_pickle(offset=-1), Entry("archive/data/0", bytes(16)))


@into(FILES)
def negative_stride(_: Path) -> bytes:
    """A view that runs backwards out of its storage."""
    return torch_zip(weights_pickle(stride=[-2, 1]), Entry("archive/data/0", bytes(16)))


@into(FILES)
def sizes_that_overflow(_: Path) -> bytes:
    """2^32 x 2^32 numbers are none in 64 bits."""
    return torch_zip(weights_pickle(shape=[2**32, 2**32]), Entry("archive/data/0", bytes(16)))


@into(FILES)
def vast_empty_tensor(_: Path) -> bytes:
    """2^62 x 0 numbers."""
    return torch_zip(weights_pickle(shape=[2**62, 0]), Entry("archive/data/0", bytes(16)))


@into(FILES)
def a_thousand_dimensions(_: Path) -> bytes:
    """More dimensions than any operator expects."""
    return torch_zip(weights_pickle(shape=[1] * 1000, stride=[1] * 1000), Entry("archive/data/0", bytes(16)))


@into(FILES)
def storage_larger_than_its_member(_: Path) -> bytes:
    """A storage of 1,000 numbers in 16 bytes. Source: CVE-2026-24747."""
    return torch_zip(weights_pickle(count=1000, shape=[1000], stride=[1]), Entry("archive/data/0", bytes(16)))


@into(FILES)
def item_set_on_a_tensor(_: Path) -> bytes:
    """SETITEM on what is no dictionary. Source: GHSA-63cw-57p8-fm3p."""
    pickled = b"\x80\x02}" + text(b"w") + tensor(4, [4], [1]) + b"K\x00K\x01s" + b"s."
    return torch_zip(pickled, Entry("archive/data/0", bytes(16)))


@into(FILES)
def storage_outside_of_the_archive(_: Path) -> bytes:
    """The key of a storage as a path."""
    pickled = weights_pickle().replace(text(b"0"), text(b"../../../etc/passwd"))
    return torch_zip(pickled, Entry("archive/data/0", bytes(16)))


@into(FILES)
def three_hundred_views_of_one_storage(_: Path) -> bytes:
    """4 MB that become 1.3 GB in copies."""
    views = b"".join(
        text(b"%d.weight" % index) + (b"h\x00" if index else tensor(2**20, [2**20], [1]) + b"q\x00")
        for index in range(320)
    )
    return torch_zip(b"\x80\x02}(" + views + b"u.", Entry("archive/data/0", bytes(2**22)))


@into(FILES)
def bytes_from_a_number(_: Path) -> bytes:
    """`bytearray(2**31 - 1)`: 350 bytes that make PyTorch allocate 2 GB."""
    return torch_zip(b"\x80\x02}" + text(b"w") + b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85Rs.")


@into(FILES)
def tensor_from_a_number(_: Path) -> bytes:
    """`torch.Tensor(2**33)`, which PyTorch allocates."""
    return torch_zip(b"\x80\x02}" + text(b"w") + b"ctorch\nTensor\n" + integer(2**33) + b"\x85Rs.")


def doubled(times: int) -> bytes:
    """A list that holds twice a list that holds twice a list."""
    return b"]q\x00" + b"0](h\x00h\x00eq\x00" * times


@into(FILES)
def list_bomb(_: Path) -> bytes:
    """A list with 2^39 paths in a kilobyte: each holds the one before twice."""
    return torch_zip(b"\x80\x02" + doubled(39) + b".")


@into(FILES)
def list_bomb_as_normalisation(_: Path) -> bytes:
    """The same where a few numbers are expected, beside nothing else."""
    return torch_zip(b"\x80\x02}" + text(b"mean") + doubled(39) + b"s.")


@into(FILES)
def endless_dictionary(_: Path) -> bytes:
    """A dictionary that holds itself."""
    return torch_zip(b"\x80\x02}q\x00" + text(b"state_dict") + b"h\x00s.")


@into(FILES)
def nested_deeply(_: Path) -> bytes:
    """Lists in lists, for readers that recurse."""
    return torch_zip(b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".")


@into(FILES)
def key_of_nested_tuples(_: Path) -> bytes:
    """A dictionary's key that is a tuple in a tuple in a tuple: to hash it ends a process that recurses."""
    return torch_zip(b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s.")


@into(FILES)
def key_that_takes_forever_to_hash(_: Path) -> bytes:
    """A key of tuples that hold the one before twice: 2^60 steps in 400 bytes."""
    return torch_zip(b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"K\x01s.")


@into(FILES)
def keys_that_collide(_: Path) -> bytes:
    """Integers of one hash value, for which dictionaries take quadratic time."""
    items = b"".join(integer(index * (2**61 - 1)) + b"N" for index in range(100_000))
    return torch_zip(b"\x80\x02}(" + items + b"u.")


@into(FILES)
def equal_texts_compared_again_and_again(_: Path) -> bytes:
    """Two equal texts of 2 MB as keys, 100,000 times."""
    long = text(b"x" * 2_000_000)
    return torch_zip(b"\x80\x02" + long + b"q\x00" + long + b"q\x010" + b"0}h\x00Ns(" + b"h\x01N" * 100_000 + b"u.")


@into(FILES)
def encoded_again_and_again(_: Path) -> bytes:
    """A text of 1 MB that is encoded 50,000 times, and kept."""
    encode = b"c_codecs\nencode\nq\x00" + text(b"x" * 1_000_000) + text(b"latin1") + b"\x86q\x01"
    return torch_zip(b"\x80\x02" + encode + b"00](" + b"h\x00h\x01R" * 50_000 + b"e.")


@into(FILES)
def copied_again_and_again(_: Path) -> bytes:
    """A list of 100,000 that becomes a set 50,000 times."""
    listed = b"](" + b"N" * 100_000 + b"e\x85q\x00"
    return torch_zip(b"\x80\x02" + listed + b"0cbuiltins\nset\nq\x010](" + b"h\x01h\x00R" * 50_000 + b"e.")


@into(FILES)
def names_joined_again_and_again(_: Path) -> bytes:
    """A module's name of 1 MB, looked up 100,000 times."""
    return torch_zip(b"\x80\x04" + text(b"x" * 1_000_000) + b"q\x000](" + b"h\x00h\x00\x93" * 100_000 + b"e.")


@into(FILES)
def memo_far_away(_: Path) -> bytes:
    """A place in the memo that an array would have to reach."""
    return torch_zip(b"\x80\x02Nr\xff\xff\xff\xff.")


@into(FILES)
def more_opcodes_than_a_checkpoint_has(_: Path) -> bytes:
    """A million and a half times nothing."""
    return torch_zip(b"\x80\x02](" + b"N" * 1_500_000 + b"e.")


@into(FILES)
def number_of_a_megabyte(_: Path) -> bytes:
    """An integer that takes long to turn into decimals, where a size is expected."""
    number = b"\x8b" + struct.pack("<I", 1_000_000) + b"\x7f" * 1_000_000
    return torch_zip(b"\x80\x02}" + text(b"input_size") + number + b"s.")


@into(FILES)
def text_that_is_no_text(_: Path) -> bytes:
    """Bytes that are no UTF-8."""
    return torch_zip(b"\x80\x02}" + text(b"\xff\xfe") + b"Ns.")


@into(FILES)
def class_names_that_collide(_: Path) -> bytes:
    """A table from names to numbers, which a reader turns around: to numbers of one hash value."""
    items = b"".join(text(b"%d" % index) + integer(index * (2**61 - 1)) for index in range(50_000))
    return torch_zip(b"\x80\x02}" + text(b"class_to_idx") + b"}(" + items + b"us.")


@into(FILES)
def storage_of_odd_bytes(_: Path) -> bytes:
    """Five bytes as numbers of two bytes, of a kind that is not read."""
    kept = storage(5, kind=b"UntypedStorage")
    arguments = kept + integer(0) + integers([2]) + integers([1]) + b"\x89}ctorch\nint16\n"
    pickled = b"\x80\x02}" + text(b"fc.weight") + b"ctorch._utils\n_rebuild_tensor_v3\n(" + arguments + b"tRs."
    return torch_zip(pickled, Entry("archive/data/0", bytes(5)))


@into(FILES)
def thirty_thousand_tensors(_: Path) -> bytes:
    """More than any network has, all of them one."""
    items = b"".join(text(b"%d.weight" % index) + b"h\x00" for index in range(30_000))
    pickled = b"\x80\x02" + tensor(4, [4], [1]) + b"q\x000}(" + items + b"u."
    return torch_zip(pickled, Entry("archive/data/0", bytes(16)))


@into(FILES)
def wrappers_around_wrappers(_: Path) -> bytes:
    """Names of hundreds of wrappers' prefixes, on a thousand tensors that are none."""
    names = (b"module." * 140 + b"%d" % index for index in range(1000))
    items = b"".join(text(name) + b"h\x00" for name in names)
    pickled = b"\x80\x02" + tensor(4, [4, 0], [1, 1]) + b"q\x000}(" + items + b"u."
    return torch_zip(pickled, Entry("archive/data/0", bytes(16)))


@into(FILES)
def arguments_again_and_again(_: Path) -> bytes:
    """A hundred thousand arguments, handed over 50,000 times."""
    many = b"(" + b"N" * 100_000 + b"tq\x000"
    call = b"ctorch._tensor\n_rebuild_from_type_v2\nq\x01" + b"(ctorch._utils\n_rebuild_qtensor\nNh\x00Ntq\x02"
    return torch_zip(b"\x80\x02" + many + call + b"00](" + b"h\x01h\x02R" * 50_000 + b"e.")


@into(FILES)
def shape_again_and_again(_: Path) -> bytes:
    """An array of 100,000 dimensions, 20,000 times."""
    shape = b"(" + b"K\x01" * 100_000 + b"tq\x000"
    kind = b"cnumpy\ndtype\n" + text(b"f4") + b"\x89\x88\x87Rq\x010"
    state = b"(K\x01h\x00h\x01\x89" + text(b"abcd") + b"tq\x020"
    make = b"cnumpy.core.multiarray\n_reconstruct\nq\x030"
    return torch_zip(b"\x80\x02" + shape + kind + state + make + b"](" + b"h\x03)Rh\x02b" * 20_000 + b"e.")
