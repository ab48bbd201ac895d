"""Zip archives that readers see differently, that lie about themselves, or that grow when they are unpacked."""

import io
import pickle
import struct
import tarfile
from pathlib import Path

import torch

from tests.teacher.hostile.making import Canary, Maker, call, into, saved, torch_zip, weights_pickle
from tests.teacher.zips import Entry, Lies, written

FILES: dict[str, Maker] = {}

NUMBERS = Entry("archive/data/0", bytes(16))


def innocent(*more: Entry) -> bytes:
    """A checkpoint of one tensor that is read, if nothing else is wrong."""
    return torch_zip(weights_pickle(), NUMBERS, *more)


def payload(marker: Path) -> bytes:
    return b"\x80\x02" + call("os", "system", f"touch {marker}") + b"."


@into(FILES)
def member_twice(marker: Path) -> bytes:
    """PyTorch takes the first member of a name, Python's zipfile the last."""
    return torch_zip(weights_pickle(), NUMBERS, Entry("archive/data.pkl", payload(marker)))


@into(FILES)
def member_twice_by_another_case_of_header(marker: Path) -> bytes:
    """Two names in the directory, one in the local headers."""
    return innocent(Entry("archive/other", payload(marker), local=Lies(name="archive/data.pkl")))


@into(FILES)
def directory_of_other_names(marker: Path) -> bytes:
    """The directory swaps two members. Source: GHSA-7q5r-7gvp-wc82."""
    return written(
        [
            Entry("archive/data.pkl", payload(marker), central=Lies(name="archive/spare")),
            Entry("archive/spare", weights_pickle(), central=Lies(name="archive/data.pkl")),
            NUMBERS,
        ]
    )


@into(FILES)
def directory_of_other_sizes(_: Path) -> bytes:
    """The directory gives a member more bytes than its header."""
    return innocent(Entry("archive/more", bytes(4), central=Lies(size=2, compressed=2)))


@into(FILES)
def directory_of_another_method(_: Path) -> bytes:
    """Stored in the header, deflated in the directory."""
    return innocent(Entry("archive/more", bytes(4), local=Lies(method=8)))


@into(FILES)
def directory_of_other_flags(_: Path) -> bytes:
    """Encrypted in the header only. Source: CVE-2025-10156."""
    return innocent(Entry("archive/more", bytes(4), local=Lies(flags=1)))


@into(FILES)
def encrypted(_: Path) -> bytes:
    """Flag 0x1, for which some scanners give up and some loaders do not. Source: CVE-2025-10156."""
    return innocent(Entry("archive/more", bytes(4), local=Lies(flags=0x1), central=Lies(flags=0x1)))


@into(FILES)
def patched(_: Path) -> bytes:
    """Flag 0x20: the data are a patch to another file. Source: GHSA-w8jq-xcqf-f792."""
    return innocent(Entry("archive/more", bytes(4), local=Lies(flags=0x20), central=Lies(flags=0x20)))


@into(FILES)
def strongly_encrypted(_: Path) -> bytes:
    """Flag 0x40. Source: GHSA-w8jq-xcqf-f792."""
    return innocent(Entry("archive/more", bytes(4), local=Lies(flags=0x40), central=Lies(flags=0x40)))


@into(FILES)
def wrong_checksum(_: Path) -> bytes:
    """The numbers are not those that were packed; PyTorch does not look."""
    wrong = Lies(crc=1)
    return torch_zip(weights_pickle(), Entry("archive/data/0", bytes(16), local=wrong, central=wrong))


@into(FILES)
def wrong_checksum_of_the_pickle(marker: Path) -> bytes:
    """Scanners that use Python's zipfile give up, PyTorch loads. Source: CVE-2025-10156."""
    wrong = Lies(crc=1)
    return written([Entry("archive/data.pkl", payload(marker), local=wrong, central=wrong)])


@into(FILES)
def absolute_name(_: Path) -> bytes:
    """A member that would be unpacked to the root."""
    return innocent(Entry("/tmp/more", bytes(4)))


@into(FILES)
def name_that_leads_upwards(_: Path) -> bytes:
    """A member that would be unpacked outside. Source: CVE-2024-5187."""
    return innocent(Entry("archive/../../more", bytes(4)))


@into(FILES)
def name_of_windows(_: Path) -> bytes:
    """Likewise, on another system."""
    return innocent(Entry("archive/..\\..\\more", bytes(4)))


@into(FILES)
def name_with_a_drive(_: Path) -> bytes:
    """Likewise."""
    return innocent(Entry("archive/c:/more", bytes(4)))


@into(FILES)
def name_with_a_zero(_: Path) -> bytes:
    """Readers in C end the name there."""
    return innocent(Entry("archive/data/0\0", bytes(4)))


@into(FILES)
def fifty_thousand_members(_: Path) -> bytes:
    """A directory that takes long to read."""
    return innocent(*(Entry(f"archive/more/{index}", b"") for index in range(50_000)))


@into(FILES)
def deflate_bomb(_: Path) -> bytes:
    """80 MiB of zeros in 80 kB, where torch.save would not compress at all."""
    count = 20 * 2**20
    pickled = weights_pickle(count=count, shape=[count], stride=[1])
    return torch_zip(pickled, Entry("archive/data/0", bytes(4 * count), deflate=True))


@into(FILES)
def deflate_bomb_that_claims_little(_: Path) -> bytes:
    """8 MiB of zeros that claim to be 16 bytes."""
    few = Lies(size=16)
    bomb = Entry("archive/data/0", bytes(2**23), deflate=True, local=few, central=few)
    return torch_zip(weights_pickle(), bomb)


@into(FILES)
def terabyte_in_the_directory(_: Path) -> bytes:
    """A member that claims 4 GB less one byte."""
    vast = Lies(size=2**32 - 2)
    return innocent(Entry("archive/more", bytes(4), deflate=True, local=vast, central=vast))


@into(FILES)
def sizes_in_64_bits_that_are_not_there(_: Path) -> bytes:
    """A size that points to an extra field, without the extra field."""
    vast = Lies(size=2**32 - 1, compressed=2**32 - 1)
    return innocent(Entry("archive/more", bytes(4), local=vast, central=vast))


@into(FILES)
def end_in_64_bits_somewhere_else(marker: Path) -> bytes:
    """A locator whose directory is another archive's. Source: readers that trust it over the end record."""
    first, second = innocent(), written([Entry("archive/data.pkl", payload(marker))])
    directory = second.index(b"PK\x01\x02")
    size = len(second) - 22 - directory
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, size, len(first) + directory)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(first) + len(second), 1)
    return first + second + end64 + locator + first[-22:]


@into(FILES)
def two_ends(marker: Path) -> bytes:
    """Two archives one after the other: readers from the front and from the back see two models."""
    return innocent() + written([Entry("archive/data.pkl", payload(marker))])


@into(FILES)
def archive_in_the_comment(marker: Path) -> bytes:
    """A whole archive as the comment of another."""
    return written(
        [Entry("archive/data.pkl", weights_pickle()), NUMBERS],
        comment=written([Entry("archive/data.pkl", payload(marker))]),
    )


@into(FILES)
def bytes_behind_the_end(marker: Path) -> bytes:
    """A pickle after the archive."""
    return innocent() + payload(marker)


@into(FILES)
def bytes_before_the_start(marker: Path) -> bytes:
    """A pickle before the archive: loaders by content run it, readers of zip do not see it."""
    return payload(marker) + innocent()


@into(FILES)
def header_before_the_start(marker: Path) -> bytes:
    """A member that the directory does not list, for readers that go from header to header."""
    hidden = written([Entry("archive/data.pkl", payload(marker))])
    return written([Entry("archive/data.pkl", weights_pickle()), NUMBERS], prefix=hidden[: hidden.index(b"PK\x01\x02")])


@into(FILES)
def hidden_member(marker: Path) -> bytes:
    """Likewise, between two others: the directory is one entry short."""
    whole = innocent(Entry("archive/more", payload(marker)))
    entry = whole.rindex(b"PK\x01\x02")
    directory = whole.index(b"PK\x01\x02")
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 4, 4, entry - directory, directory, 0)
    return whole[:entry] + end


@into(FILES)
def fewer_members_than_listed(_: Path) -> bytes:
    """An end record that counts fewer members than the directory has."""
    return written([Entry("archive/data.pkl", weights_pickle()), NUMBERS], count=1)


@into(FILES)
def overlapping_members(_: Path) -> bytes:
    """Members that share their data, which multiplies them. Source: D. Fifield, A better zip bomb, WOOT 2019."""
    first = Entry("archive/data.pkl", weights_pickle())
    again = (Entry(f"archive/data/{index}", b"", central=Lies(offset=0)) for index in range(3))
    return written([first, *again])


@into(FILES)
def unusual_compression(_: Path) -> bytes:
    """bzip2, which PyTorch does not read."""
    return innocent(Entry("archive/more", b"BZh9", local=Lies(method=12), central=Lies(method=12)))


@into(FILES)
def two_folders(marker: Path) -> bytes:
    """Two checkpoints in one archive; PyTorch takes the folder of the first member, scanners any."""
    return innocent(Entry("other/data.pkl", payload(marker)))


@into(FILES)
def pickle_of_another_name(marker: Path) -> bytes:
    """The pickle is not where torch.save puts it. Source: GHSA-769v-p64c-89pr."""
    return written([Entry("archive/data.pk", payload(marker)), Entry("archive/version", b"3")])


@into(FILES)
def checkpoint_and_exported_program(marker: Path) -> bytes:
    """One archive with the marks of two formats."""
    return innocent(
        Entry("archive/archive_format", b"pt2"), Entry("archive/data/sample_inputs/model.pt", payload(marker))
    )


@into(FILES)
def torchscript_and_exported_program(_: Path) -> bytes:
    """Likewise. Source: the polyglots of fickling."""
    return innocent(Entry("archive/constants.pkl", b"\x80\x02)."), Entry("archive/archive_format", b"pt2"))


@into(FILES)
def torch_package(marker: Path) -> bytes:
    """Source files that are imported. Source: pytorch #194694."""
    source = f"open('{marker}', 'w')".encode()
    return innocent(Entry("archive/.data/extern_modules", b""), Entry("archive/model.py", source))


@into(FILES)
def tar_in_a_zip(marker: Path) -> bytes:
    """A zip archive whose first member makes the file a tar as well. Source: the safetensors audit of 2023."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("pickle")
        info.size = 10
        archive.addfile(info, io.BytesIO(bytes(10)))
    name = "archive/" + "x" * 30
    inside = buffer.getvalue()[30 + len(name) :]
    return written([Entry(name, inside), Entry("archive/data.pkl", payload(marker))])


@into(FILES)
def zip_behind_a_legacy_file(marker: Path) -> bytes:
    """Begins as one format and ends as another."""
    return saved({"fc.weight": torch.zeros(2, 2)}, legacy=True) + written([Entry("a/data.pkl", payload(marker))])


@into(FILES)
def zip_behind_a_pickle(marker: Path) -> bytes:
    """Likewise. Source: picklescan's suite."""
    return pickle.dumps(Canary(marker)) + innocent()


@into(FILES)
def neither_little_nor_big(_: Path) -> bytes:
    """A byte order that no machine has."""
    return torch_zip(weights_pickle(), NUMBERS, order=b"middle")


@into(FILES)
def storage_that_is_missing(_: Path) -> bytes:
    """A tensor whose numbers are not in the archive."""
    return torch_zip(weights_pickle())


@into(FILES)
def cut_in_half(_: Path) -> bytes:
    """A download that ended early."""
    whole = saved({"fc.weight": torch.zeros(100, 100)})
    return whole[: len(whole) // 2]


@into(FILES)
def empty_archive(_: Path) -> bytes:
    """An archive of nothing."""
    return written([])


@into(FILES)
def first_member_only(_: Path) -> bytes:
    """A header, and nothing else."""
    return b"PK\x03\x04" + bytes(26)
