import warnings

import pytest
import torch

from compress.pipeline.teacher.readers.stored import ImplausibleTensor, Storage, from_bytes, stored_array, stored_tensor

NUMBERS = torch.arange(12, dtype=torch.float32)


def storage(*, dtype: torch.dtype | None = torch.float32, swapped: bool = False) -> Storage:
    numbers = NUMBERS.numpy().byteswap() if swapped else NUMBERS.numpy()
    content = memoryview(bytearray(numbers.tobytes()))
    return Storage(dtype, 12 if dtype else 48, lambda: content, swapped)


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [
        (0, (3, 4), (4, 1)),
        (0, (4, 3), (1, 4)),
        (5, (2, 2), (3, 1)),
        (11, (), ()),
        (11, (1, 1), (100, 100)),
        (0, (12,), (1,)),
    ],
)
def test_a_view_is_the_one_that_torch_makes(offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> None:
    made = stored_tensor(storage(), torch.float32, offset, shape, stride).tensor()
    assert torch.equal(made, NUMBERS.as_strided(shape, stride, offset))


def test_empty_tensors_need_no_storage() -> None:
    assert stored_tensor(storage(), torch.float32, 99, (0, 3), (3, 1)).tensor().shape == (0, 3)


def test_storages_of_bytes_are_counted_in_the_tensors_numbers() -> None:
    made = stored_tensor(storage(dtype=None), torch.float32, 2, (10,), (1,)).tensor()
    assert torch.equal(made, NUMBERS[2:])
    with pytest.raises(ImplausibleTensor, match="reaches beyond its numbers"):
        stored_tensor(storage(dtype=None), torch.float32, 2, (11,), (1,))


def test_the_other_byte_order_is_swapped() -> None:
    assert torch.equal(stored_tensor(storage(swapped=True), torch.float32, 0, (12,), (1,)).tensor(), NUMBERS)


def test_tensors_of_one_storage_share_its_memory() -> None:
    shared = storage()
    one, other = (stored_tensor(shared, torch.float32, 0, (12,), (1,)).tensor() for _ in range(2))
    one[0] = 7
    assert other[0] == 7


@pytest.mark.parametrize(
    ("offset", "shape", "stride", "reason"),
    [
        (0, (13,), (1,), "claims a tensor of 13 numbers where 12 are stored"),
        (1, (12,), (1,), "reaches beyond its numbers"),
        (0, (2,), (12,), "reaches beyond its numbers"),
        (0, (2**40,), (0,), "claims a tensor of 1,099,511,627,776 numbers where 12 are stored"),
        (0, (2**32, 2**32), (0, 0), "claims a tensor of 18,446,744,073,709,551,616 numbers"),
        (-1, (2,), (1,), "without a sensible shape"),
        (0, (-2,), (1,), "without a sensible shape"),
        (0, (2,), (-1,), "without a sensible shape"),
        (0, (2, 2), (1,), "without a sensible shape"),
        (0, (1,) * 65, (1,) * 65, "without a sensible shape"),
        (0, (2**48, 0), (1, 1), "without a sensible shape"),
        (0, (True, 2), (1, 1), "without a sensible shape"),
        (0, (2.0,), (1,), "without a sensible shape"),
    ],
)
def test_what_is_not_there_cannot_be_claimed(
    offset: int, shape: tuple[int, ...], stride: tuple[int, ...], reason: str
) -> None:
    with pytest.raises(ImplausibleTensor, match=reason):
        stored_tensor(storage(), torch.float32, offset, shape, stride)


@pytest.mark.parametrize("column_major", [False, True])
def test_arrays_are_laid_out_in_either_order(column_major: bool) -> None:
    made = stored_array(storage(), torch.float32, (3, 2, 2), column_major=column_major).tensor()
    expected = torch.from_numpy(NUMBERS.numpy().reshape((3, 2, 2), order="F" if column_major else "C"))
    assert torch.equal(made, expected)


def test_numbers_at_odd_places_are_moved_to_even_ones() -> None:
    content = memoryview(bytearray(b"x" + NUMBERS.numpy().tobytes()))[1:]
    with warnings.catch_warnings(action="error"):
        numbers = from_bytes(content, torch.float32)
    assert torch.equal(numbers, NUMBERS) and numbers.data_ptr() % 4 == 0


def test_no_bytes_are_no_numbers() -> None:
    assert from_bytes(memoryview(bytearray()), torch.float16).shape == (0,)
