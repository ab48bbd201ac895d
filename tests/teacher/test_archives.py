import io
import zipfile
import zlib

import pytest

from compress.pipeline.errors import InputError
from compress.pipeline.teacher.readers import archives
from compress.pipeline.teacher.readers.archives import Archive, ends_like_an_archive
from tests.teacher.zips import Entry, Lies, written

CONTENTS = {"m/data.pkl": b"pickle", "m/data/0": bytes(range(64)) * 4, "m/empty": b""}


def packed(method: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytearray:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in CONTENTS.items():
            archive.writestr(name, content)
        archive.comment = comment
    return bytearray(buffer.getvalue())


def refusal(data: bytes | bytearray) -> str:
    with pytest.raises(InputError) as caught:
        Archive(bytearray(data), "t.pt")
    return caught.value.message


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_are_read_as_they_were_packed(method: int) -> None:
    archive = Archive(packed(method), "t.pt")
    assert archive.names == CONTENTS.keys()
    assert {name: bytes(archive.read(name)) for name in archive.names} == CONTENTS
    assert {name: archive.size(name) for name in archive.names} == {name: len(c) for name, c in CONTENTS.items()}


def test_the_tests_own_writer_agrees_with_zipfile() -> None:
    data = written([Entry(name, content, deflate=bool(content)) for name, content in CONTENTS.items()])
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == CONTENTS
        assert archive.testzip() is None
    assert Archive(bytearray(data), "t.pt").names == CONTENTS.keys()


def test_what_is_read_shares_memory_with_the_file_and_can_be_written() -> None:
    data = packed()
    content = Archive(data, "t.pt").read("m/data/0")
    assert content.obj is data and not content.readonly
    assert not Archive(packed(zipfile.ZIP_DEFLATED), "t.pt").read("m/data/0").readonly


def test_sizes_in_64_bits_are_read_where_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)  # what archives of more than 4 GB look like
    data = packed()
    assert b"PK\x06\x06" in data and b"PK\x06\x07" in data
    assert bytes(Archive(data, "t.pt").read("m/data/0")) == CONTENTS["m/data/0"]


@pytest.mark.parametrize("field", [4, 16, 20, 24, 32, 40, 48])  # all but the versions of the writer
def test_an_end_in_64_bits_must_be_right(monkeypatch: pytest.MonkeyPatch, field: int) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    data = packed()
    data[data.index(b"PK\x06\x06") + field] ^= 1
    assert "contradicts itself" in refusal(data)


@pytest.mark.parametrize("length", [0, 3, 30, 100, 300])
def test_a_truncated_archive_is_refused(length: int) -> None:
    assert refusal(packed()[:length]) == "'t.pt' is a damaged or truncated zip archive."


def test_a_flipped_bit_is_found_when_the_member_is_read() -> None:
    data = packed()
    data[data.index(CONTENTS["m/data/0"]) + 100] ^= 1
    archive = Archive(data, "t.pt")
    archive.read("m/data.pkl")
    with pytest.raises(InputError, match=r"'t\.pt' is damaged: a checksum in it is wrong"):
        archive.read("m/data/0")


def test_a_damaged_deflate_stream_is_refused() -> None:
    archive = Archive(
        bytearray(written([Entry("a", b"\xff" * 9, central=Lies(method=8), local=Lies(method=8))])), "t.pt"
    )
    with pytest.raises(InputError, match="damaged or truncated zip archive"):
        archive.read("a")


@pytest.mark.parametrize("claimed", [255, 257])
def test_a_deflated_member_of_another_size_than_claimed_is_refused(claimed: int) -> None:
    lie = Lies(size=claimed)
    archive = Archive(bytearray(written([Entry("a", bytes(256), deflate=True, local=lie, central=lie)])), "t.pt")
    with pytest.raises(InputError, match="contradicts itself"):
        archive.read("a")


@pytest.mark.parametrize("field", ["name", "flags", "method", "crc", "size", "compressed"])
@pytest.mark.parametrize("place", ["local", "central"])
def test_header_and_directory_must_agree(place: str, field: str) -> None:
    lie = Lies(**{field: "other" if field == "name" else 2})  # type: ignore[arg-type]
    entry = Entry("a", bytes(8), **{place: lie})  # type: ignore[arg-type]
    assert refusal(written([entry])).startswith("'t.pt' is a zip archive ")


def test_every_byte_of_the_file_must_belong_to_the_archive() -> None:
    entries = [Entry("a", b"content"), Entry("b", b"content")]
    assert Archive(bytearray(written(entries)), "t.pt").names == {"a", "b"}
    assert "contradicts itself" in refusal(written(entries, prefix=b"#!/bin/sh\n"))
    assert "other bytes behind its end" in refusal(written(entries) + b"x")
    assert "other bytes behind its end" in refusal(packed(comment=b"made by hand"))
    hole = [entries[0], Entry("b", b"content", central=Lies(offset=5))]
    assert "contradicts itself" in refusal(written(hole))


@pytest.mark.parametrize("name", ["/a", "../a", "a/../../b", "..", "a\\b", "c:a", "a\0b", ""])
def test_names_that_lead_out_are_refused(name: str) -> None:
    assert "whose name leads out of it" in refusal(written([Entry(name, b"")]))


def test_the_same_member_twice_is_refused() -> None:
    assert "holds the same member twice" in refusal(written([Entry("a", b"1"), Entry("a", b"2")]))


def test_more_members_than_a_checkpoint_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_MEMBERS", 2)
    assert refusal(bytes(packed())) == "'t.pt' is a zip archive of 3 members; 2 can be read."


def test_what_may_be_inside_is_bounded_by_what_is_outside() -> None:
    # 20 x the file + 64 MiB, so that no small file gives much and no large one is multiplied
    most = 64 * 2**20
    lie = Lies(size=most + 10_000)
    data = written([Entry("a", bytes(1000), deflate=True, local=lie, central=lie)])
    assert 20 * len(data) < 10_000
    assert refusal(data) == f"'t.pt' is small but declares {most + 10_000:,} bytes."


def test_an_archive_is_found_at_the_end_of_another_file() -> None:
    assert ends_like_an_archive(bytearray(b"anything") + packed())
    assert ends_like_an_archive(packed(comment=b"x" * 1000))
    assert not ends_like_an_archive(bytearray(b"PK\x05\x06" + bytes(17)))
    assert not ends_like_an_archive(bytearray(b"PK\x05\x06" + b"\xff" * 18))
    assert not ends_like_an_archive(bytearray(zlib.compress(b"anything")))
