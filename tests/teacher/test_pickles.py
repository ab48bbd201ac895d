import collections
import pickle

import pytest

from compress.pipeline.teacher.pickles import imported_names, is_pickle


class Imports:
    """Pickles as a call of `print`."""

    def __reduce__(self) -> tuple[object, ...]:
        return print, ("called",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_a_pickle_would_call_is_found_in_every_protocol(protocol: int) -> None:
    # Protocols 0 to 2 use the names of Python 2.
    module = "__builtin__" if protocol < 3 else "builtins"
    assert imported_names(pickle.dumps({"key": Imports()}, protocol)) == [f"{module}.print"]


def test_names_that_come_from_the_memo_are_resolved() -> None:
    # The second lookup takes the module's name from the memo.
    assert imported_names(pickle.dumps([print, repr], 4)) == ["builtins.print", "builtins.repr"]


def test_reading_the_names_does_not_call_them(capsys: pytest.CaptureFixture[str]) -> None:
    stream = pickle.dumps(Imports())
    imported_names(stream)
    assert capsys.readouterr().out == ""
    pickle.loads(stream)
    assert capsys.readouterr().out == "called\n"


def test_ordered_dictionaries_are_nothing_to_report() -> None:
    assert imported_names(pickle.dumps(collections.OrderedDict(a=1))) == []


def test_names_before_a_broken_opcode_are_still_reported() -> None:
    assert imported_names(pickle.dumps(Imports(), 0)[:-1] + b"\xff") == ["__builtin__.print"]


def test_text_is_no_pickle() -> None:
    assert not is_pickle(b"hello")
    assert is_pickle(pickle.dumps([1, 2], 0))
