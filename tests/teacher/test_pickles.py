import collections
import io
import pickle
from typing import Any

import pytest

from compress.pipeline.teacher.readers import pickles
from compress.pipeline.teacher.readers.constructors import CONSTRUCTORS
from compress.pipeline.teacher.readers.pickles import BrokenPickle, Global, Inert, Machine, is_pickle
from tests.teacher.hostile.making import integer

PROTOCOLS = pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))


class Imports:
    """Pickles as a call of `print`."""

    def __reduce__(self) -> tuple[object, ...]:
        return print, ("called",)


class Numbered:
    """Of a class that no table has, with state."""

    def __init__(self) -> None:
        self.number = 1


def run(stream: bytes) -> tuple[Any, set[str]]:
    """The value of a pickle, and what it would import beyond the table."""
    machine = Machine(CONSTRUCTORS)
    return machine.run(io.BytesIO(stream)), machine.unknown


def unknown_of(stream: bytes) -> set[str]:
    """What a broken pickle would import."""
    machine = Machine(CONSTRUCTORS)
    with pytest.raises(BrokenPickle):
        machine.run(io.BytesIO(stream))
    return machine.unknown


@PROTOCOLS
@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -1,
        2**40,
        -(2**100),
        0.5,
        "text",
        "\N{SNOWMAN}",
        [],
        [1, [2, "a", None]],
        (),
        (1,),
        (1, 2),
        (1, 2, 3),
        (1, 2, 3, 4),
        {},
        {"a": {"b": [1.5]}, "c": (None, False)},
        {7: "seven", "long": "x" * 300},
        ["same"] * 3,
        "x" * 70_000,
    ],
)
def test_plain_data_come_out_as_python_reads_them(protocol: int, value: object) -> None:
    assert run(pickle.dumps(value, protocol)) == (value, set())


@PROTOCOLS
def test_bytes_come_out_as_bytes_or_as_text_in_latin_1(protocol: int) -> None:
    value, unknown = run(pickle.dumps(b"\x00\xff" * 200, protocol))
    assert (value.encode("latin-1") if isinstance(value, str) else value) == b"\x00\xff" * 200
    assert unknown == set()


@PROTOCOLS
def test_containers_of_the_standard_library_become_plain_ones(protocol: int) -> None:
    given = {
        "ordered": collections.OrderedDict(a=1, b=2),
        "default": collections.defaultdict(list, {"a": [1]}),
        "counter": collections.Counter("aab"),
        "deque": collections.deque([1, 2], 5),
        "set": {1},
        "frozen": frozenset({1}),
    }
    expected = {"ordered": {"a": 1, "b": 2}, "default": {"a": [1]}, "counter": {"a": 2, "b": 1}}
    assert run(pickle.dumps(given, protocol)) == (expected | {"deque": [1, 2], "set": [1], "frozen": [1]}, set())


def test_what_is_shared_stays_shared() -> None:
    inner = [1]
    value, _ = run(pickle.dumps([inner, inner]))
    assert value[0] is value[1]


def test_what_holds_itself_still_does() -> None:
    endless: list[Any] = []
    endless.append(endless)
    value, _ = run(pickle.dumps(endless))
    assert value[0] is value


@PROTOCOLS
def test_what_a_pickle_would_call_is_found_in_every_protocol(protocol: int) -> None:
    assert run(pickle.dumps({"key": Imports()}, protocol))[1] == {"builtins.print"}


def test_names_that_come_from_the_memo_are_resolved() -> None:
    # The second lookup takes the module's name from the memo.
    assert run(pickle.dumps([print, repr], 4))[1] == {"builtins.print", "builtins.repr"}


def test_an_unknown_class_is_made_of_nothing_and_takes_any_state() -> None:
    value, unknown = run(pickle.dumps({"a": Numbered()}, 2))
    assert isinstance(value["a"], Inert)
    assert unknown == {f"{__name__}.Numbered"}


def test_nothing_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    stream = pickle.dumps(Imports())
    run(stream)
    assert capsys.readouterr().out == ""
    pickle.loads(stream)
    assert capsys.readouterr().out == "called\n"


def test_names_before_a_broken_opcode_are_still_known() -> None:
    assert unknown_of(pickle.dumps(Imports(), 0)[:-1] + b"\xff") == {"builtins.print"}


def test_a_name_alone_is_a_name() -> None:
    assert run(b"ctorch\nfloat16\n.") == (Global("torch.float16"), set())


def test_keys_that_are_neither_short_texts_nor_small_integers_are_dropped() -> None:
    value, _ = run(pickle.dumps({"a": 1, (1, 2): 2, None: 3, 0.5: 4, b"b": 5, 2**31: 6, "x" * 1_001: 7, -1: 8}))
    assert value == {"a": 1, -1: 8}


def test_integers_that_are_too_long_to_compute_with_are_no_numbers() -> None:
    value, _ = run(pickle.dumps([2**127, 2**128]))
    assert value[0] == 2**127
    assert isinstance(value[1], Inert)


def test_pickles_follow_one_another() -> None:
    stream = io.BytesIO(pickle.dumps(1) + pickle.dumps(2) + b"rest")
    assert [Machine({}).run(stream), Machine({}).run(stream), stream.read()] == [1, 2, b"rest"]


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b".",
        b"\x80\x02",
        b"NN.",  # two values
        b"(N.",  # a mark is left over
        b"t.",  # no mark
        b"0.",
        b"N\x86.",  # a pair of one
        b"h\x07.",  # nothing in the memo
        b"Np-1\n.",
        b"Nr\xff\xff\xff\xff.",
        b"NNa.",  # appended to nothing
        b"]NNs.",  # a key of a list
        b"}(Nu.",  # a key without a value
        b"})R.",  # a call of a dictionary
        b"cbuiltins\nobject\n(" + b"N" * 33 + b"tR.",  # more arguments than one has
        b"\x8c\x01a\x8c\x01b0\x93.",
        b"NN\x93.",  # names that are no texts
        b"c" + b"x" * 1001 + b"\na\n.",
        b"\x82\x01.",  # an extension of copyreg
        b"Vid\nQ.",
        b"\x97.",
        b"X\xff\xff\xff\xffabc.",
        b"I12a\n.",
        b"ccollections\nOrderedDict\n](K\x01e\x85R.",
    ],
)
def test_streams_without_sense_are_broken(stream: bytes) -> None:
    assert unknown_of(stream) == set() or stream.startswith((b"c", b"\x8c"))


def test_more_opcodes_than_a_checkpoint_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MOST_OPCODES", 6)
    assert run(b"NN0N0.") == (None, set())
    assert unknown_of(b"NN0N0N0.") == set()


def test_an_ordered_dictionary_of_python_2_uses_up_its_pairs() -> None:
    pairs = b"](](U\x01aK\x01e](U\x01bK\x02ee"
    value, _ = run(b"](" + pairs + b"q\x00ccollections\nOrderedDict\nh\x00\x85Rccollections\nOrderedDict\nh\x00\x85Re.")
    assert value == [[], {"a": 1, "b": 2}, {}]


@pytest.mark.parametrize("number", [0, 1, -1, 2**63, -(2**63), 2**126])
def test_the_tests_own_integers_are_pythons(number: int) -> None:
    assert pickle.loads(integer(number) + b".") == number


@PROTOCOLS
def test_a_pickle_is_told_from_a_text(protocol: int) -> None:
    assert is_pickle(bytearray(pickle.dumps([1, 2], protocol)))
    assert not is_pickle(bytearray(b"hello"))
    assert not is_pickle(bytearray(pickle.dumps([1, 2], protocol)[:-1]))
