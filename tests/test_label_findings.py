import string

import numpy as np
import pytest
from numpy.typing import NDArray

from compress.pipeline.label_findings import carried_finding, closest_pairs, is_meaningless, name_findings


def at_cosines(*cosines: float) -> NDArray[np.float32]:
    """A unit vector, and others at these cosines to it, each along an axis of its own beside."""
    vectors = np.eye(len(cosines) + 1)
    for row, cosine in enumerate(cosines, start=1):
        vectors[row] *= np.sqrt(1 - cosine**2)
        vectors[row, 0] = cosine
    return vectors.astype(np.float32)


def test_every_label_is_paired_with_the_nearest_after_it_and_the_closest_pair_comes_first() -> None:
    embeddings = np.array([[1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32)
    # Cosines: a b 0, a c 0.6, b c 0.8
    expected = [("b", "c", float(np.float32(0.8))), ("a", "c", float(np.float32(0.6)))]
    assert closest_pairs(("a", "b", "c"), embeddings) == expected
    assert closest_pairs(("a",), embeddings[:1]) == []


def test_names_that_differ_are_worth_a_note() -> None:
    (finding,) = name_findings(("cat", "dog"), ("cat", "dog"), at_cosines(0.64))
    assert finding.severity == "note"
    assert finding.message == "The most alike of 2 class names are 'cat' and 'dog', with a cosine of 0.64."


def test_names_that_mean_the_same_are_a_problem() -> None:
    (finding,) = name_findings(("hot-dog", "hot dog"), ("hot dog", "hot dog"), at_cosines(1.0))
    assert finding.severity == "problem"
    assert finding.message == "The class names 'hot-dog' and 'hot dog' mean the same to the text encoder."
    assert "'crane (bird)' and 'crane (machine)'" in finding.advice


def test_names_that_mean_nearly_the_same_are_worth_a_warning() -> None:
    (finding,) = name_findings(("cat", "cats", "dog"), ("cat", "cats", "dog"), at_cosines(0.97, 0.6))
    assert finding.severity == "warning"
    assert finding.message == ("The text encoder hardly tells these class names apart: 'cat' and 'cats' (cosine 0.97).")


def test_at_most_five_pairs_are_listed() -> None:
    labels = tuple(f"name {letter}" for letter in "abcdefgh")
    (finding,) = name_findings(labels, labels, np.ones((8, 1), dtype=np.float32))
    assert finding.message.count(" and 'name") == 5
    assert "and 2 more mean the same" in finding.message


@pytest.mark.parametrize(
    "text",
    [
        *("class 7", "Class7", "label3", "category #12", "id 9", "n01440764", "17", "2024"),
        *("a1b2c3d4", "DEADBEEF01", "550e8400 e29b 41d4 a716 446655440000", "x"),
    ],
)
def test_numbers_identifiers_and_letters_mean_nothing(text: str) -> None:
    assert is_meaningless(text)


@pytest.mark.parametrize(
    "text",
    [
        *("0", "7", "cat", "3D printer", "7 Eleven", "A310", "707 320", "facade", "decade 90", "first class"),
        *("class action", "犬", "n01440764 tench", "60s"),
    ],
)
def test_names_of_things_mean_something(text: str) -> None:
    assert not is_meaningless(text)


def test_meaningless_names_are_counted_and_shown_as_they_were_given() -> None:
    labels = ("class_0", "class_1", "cat")
    (finding,) = name_findings(labels, ("class 0", "class 1", "cat"), at_cosines(0.5, 0.5))
    assert finding.severity == "warning"
    assert finding.message == "2 of 3 class names mean nothing to the text encoder: 'class_0', 'class_1'."
    assert finding.advice.startswith("Say in words what the classes show")


def test_the_alphabet_is_a_list_of_names() -> None:
    few, all_of_them = tuple(string.ascii_uppercase[:3]), tuple(string.ascii_uppercase)
    assert [finding.severity for finding in name_findings(few, few, at_cosines(0, 0))] == ["warning"]
    unlike = np.eye(26, dtype=np.float32)
    assert [finding.severity for finding in name_findings(all_of_them, all_of_them, unlike)] == ["note"]


def test_a_single_class_has_nothing_to_be_compared_with() -> None:
    assert name_findings(("cat",), ("cat",), at_cosines()) == ()


def test_labels_in_another_order_than_the_checkpoints_own_are_flagged() -> None:
    (finding,) = carried_finding(("cat", "cow", "dog"), ("cat", "dog", "cow"))
    assert finding.severity == "warning"
    assert finding.message == (
        "The checkpoint names 2 of its 3 classes otherwise than the labels file; the first is 'dog' there and 'cow' here."
    )


def test_names_from_a_checkpoint_cannot_steer_the_terminal() -> None:
    (finding,) = carried_finding(("cat", "cow"), ("\x1b[31mdog", "cow"))
    assert "the first is '?[31mdog' there and 'cat' here" in finding.message


@pytest.mark.parametrize("carried", [("Cat", "tench"), ("cat", "tench, Tinca tinca"), (), ("cat",)])
def test_labels_that_say_the_same_or_have_nothing_to_be_compared_with_are_not(carried: tuple[str, ...]) -> None:
    assert list(carried_finding(("cat", "tench"), carried)) == []
