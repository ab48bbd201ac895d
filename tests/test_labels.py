from pathlib import Path

import pytest

from compress.pipeline.errors import InputError, UsageError
from compress.pipeline.labels import MAX_FILE_BYTES, check_label_count, label_text, label_texts, read_labels


def labels_file(folder: Path, content: bytes) -> Path:
    path = folder / "labels.txt"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        b"cat\ndog",
        b"cat\ndog\n",
        b"cat\ndog\n\n\n",
        b"\xef\xbb\xbfcat\ndog\n",
        b"cat\r\ndog\r\n",
        b"  cat\t\ndog  \n",
    ],
)
def test_names_are_read_whatever_editor_wrote_them(tmp_path: Path, content: bytes) -> None:
    assert read_labels(labels_file(tmp_path, content)) == ("cat", "dog")


def test_names_of_every_script_are_read(tmp_path: Path) -> None:
    names = ("chat noir", "犬", "Mülleimer", "می‌خواهم", "0", "crane (bird)")
    assert read_labels(labels_file(tmp_path, "\n".join(names).encode())) == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n \n\r\n", "is empty"),
        (b"cat\0dog\n", "is not text: it holds NUL bytes"),
        ("cat\ndog\n".encode("utf-16"), "is not text: it holds NUL bytes"),
        (b"cat\nM\xfcll\n", "is not UTF-8 text: line 2"),
        (b"cat\n\ndog\n", "Line 2 of the labels file is blank"),
        (b"\ncat\ndog\n", "Line 1 of the labels file is blank"),
        (b"cat\ndog\nhen\ndog\n", r"names 'dog' twice, on lines 2 and 4"),
        (b"cat\nd\x1b[2Jog\n", r"line 2 of the labels file holds control characters: 'd\\x1b\[2Jog'"),
        (b"cat\rdog\n", r"line 1 of the labels file holds control characters: 'cat\\rdog'"),
        ("cat\n\N{RIGHT-TO-LEFT OVERRIDE}god\n".encode(), r"holds control characters: '\\u202egod'"),
        ("cat\N{LINE SEPARATOR}dog\n".encode(), r"holds control characters: 'cat\\u2028dog'"),
        (b"cat\n" + b"x" * 201 + b"\n", "The name on line 2 of the labels file has 201 characters: 'xxx"),
    ],
)
def test_what_is_no_list_of_names_is_refused_with_its_reason(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_labels(labels_file(tmp_path, content))


def test_a_name_of_the_greatest_length_is_read(tmp_path: Path) -> None:
    assert read_labels(labels_file(tmp_path, b"x" * 200)) == ("x" * 200,)


def test_messages_never_carry_what_a_terminal_would_obey(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_labels(labels_file(tmp_path, b"\x1b]0;owned\x07" * 30))
    assert caught.value.message.isprintable()


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = labels_file(tmp_path, b"")
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(InputError, match=r"absurdly large: 10,000,001 bytes"):
        read_labels(path)


def test_a_missing_file_and_a_folder_are_wrong_paths(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no labels file"):
        read_labels(tmp_path / "labels.txt")
    with pytest.raises(UsageError, match="is not a file"):
        read_labels(tmp_path)
    with pytest.raises(UsageError, match="cannot be read: File name too long"):
        read_labels(tmp_path / ("x" * 300))


def test_the_number_of_names_must_be_the_number_of_outputs() -> None:
    check_label_count(("cat", "dog"), 2)
    with pytest.raises(InputError, match="tells 10 classes apart, but the labels file names 2"):
        check_label_count(("cat", "dog"), 10)


@pytest.mark.parametrize(
    ("label", "text"),
    [("tabby_cat", "tabby cat"), ("T-shirt", "T shirt"), ("a__b - c", "a b c"), ("0", "0"), ("-", "-")],
)
def test_names_become_words(label: str, text: str) -> None:
    assert label_text(label) == text


@pytest.mark.parametrize(
    ("labels", "texts"),
    [
        (("n01440764 tench, Tinca tinca", "n01443537 goldfish"), ("tench", "goldfish")),
        (("n02085620-Chihuahua", "n02085782-Japanese_spaniel"), ("Chihuahua", "Japanese spaniel")),
        (("0 tench", "1 goldfish"), ("tench", "goldfish")),
        (("0: tench, Tinca tinca", "1: goldfish, Carassius auratus"), ("tench", "goldfish")),
        (("0,tench", "1,goldfish"), ("tench", "goldfish")),
        (("1) tench", "2) goldfish"), ("tench", "goldfish")),
        (("001.Black_footed_Albatross", "002.Laysan_Albatross"), ("Black footed Albatross", "Laysan Albatross")),
        (("0 n01440764 tench", "1 n01443537 goldfish"), ("tench", "goldfish")),
        (("tench, Tinca tinca", "goldfish, Carassius auratus"), ("tench", "goldfish")),
    ],
)
def test_numbers_identifiers_and_synonyms_are_left_out_of_the_text(
    labels: tuple[str, ...], texts: tuple[str, ...]
) -> None:
    assert label_texts(labels) == texts


@pytest.mark.parametrize(
    ("labels", "texts"),
    [
        (("3D printer", "7-Eleven"), ("3D printer", "7 Eleven")),
        (("0", "1", "2"), ("0", "1", "2")),
        (("0.5 mm", "1.5 mm"), ("0.5 mm", "1.5 mm")),
        (("0 stars", "1 star", "2 stars"), ("0 stars", "1 star", "2 stars")),  # without, two names would be one
        (("0 cats", "2 cats, asleep", "1 cat"), ("0 cats", "2 cats, asleep", "1 cat")),  # no numbers of lines
        (("1 dog",), ("1 dog",)),
        (("crane, bird", "heron", "stork"), ("crane, bird", "heron", "stork")),
        (("n01440764", "n01443537"), ("n01440764", "n01443537")),
        ((",", "n0144 cat"), (",", "n0144 cat")),
    ],
)
def test_numbers_and_commas_that_belong_to_a_name_stay(labels: tuple[str, ...], texts: tuple[str, ...]) -> None:
    assert label_texts(labels) == texts


@pytest.mark.parametrize(
    ("labels", "texts"),
    [
        (("crane, bird", "crane, machine"), ("crane, bird", "crane, machine")),
        (
            ("n03710637 maillot", "n03710721 maillot, tank suit", "n04008634 projectile, missile"),
            ("maillot", "maillot, tank suit", "projectile"),
        ),
        (("a, b, c", "a, b, d", "a, e, f"), ("a, b, c", "a, b, d", "a, e")),
        (("n02012849 crane", "n03126707 crane"), ("crane", "crane")),  # nothing is left to tell them apart
    ],
)
def test_as_many_synonyms_stay_as_tell_the_classes_apart(labels: tuple[str, ...], texts: tuple[str, ...]) -> None:
    assert label_texts(labels) == texts


@pytest.mark.parametrize(
    ("labels", "texts"),
    [
        (("n01440764 tench, Tinca tinca", "n01443537 goldfish"), ("tench, Tinca tinca", "goldfish")),
        (
            ("0: tench, Tinca_tinca", "1: gold-fish, Carassius auratus"),
            ("tench, Tinca tinca", "gold fish, Carassius auratus"),
        ),
        (("cat", "dog"), ("cat", "dog")),
    ],
)
def test_all_synonyms_stay_where_they_are_asked_for(labels: tuple[str, ...], texts: tuple[str, ...]) -> None:
    assert label_texts(labels, "all") == texts
