"""Real images: what is read, what is refused, what is measured."""

import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from compress.exporters.camera_input import Bytes
from compress.exporters.runners import Images, TorchRunner
from compress.pipeline.errors import CompressError, InputError, MissingResourceError, UsageError
from compress.pipeline.holdout import Holdout, measure, open_holdout
from compress.pipeline.proportions import proportion
from compress.pipeline.records import InputSpec
from compress.pipeline.teacher import Teacher
from tests.command import LABELS
from tests.tiny import tiny_teacher

GREY = InputSpec(channels=1, height=8, width=8, mean=(0.4,), std=(0.2,))
COLOUR = GREY.model_copy(update={"channels": 3})


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def picture(path: Path, pixels: NDArray[np.uint8] | None = None, **options: Any) -> Path:
    """A picture in a folder that is made for it; grey noise in the teacher's size unless told otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(8, 8) if pixels is None else pixels).save(path, **options)
    return path


def arrays(path: Path, **content: Any) -> Path:
    np.savez_compressed(path, **content)
    return path


def pixels_of(holdout: Holdout) -> NDArray[np.uint8]:
    return (np.concatenate(list(holdout.batches())) * 255).round().astype(np.uint8)


def refusal(
    path: Path, kind: type[CompressError], wanted: InputSpec = GREY, labels: tuple[str, ...] = LABELS
) -> CompressError:
    with pytest.raises(kind) as caught:
        open_holdout(path, labels, wanted)
    assert type(caught.value) is kind
    return caught.value


# Folders


def test_class_folders_are_read_by_name_with_their_classes(tmp_path: Path) -> None:
    for number, name in enumerate(["star/2.png", "circle/b.bmp", "circle/a.PNG", "star/10.webp"]):
        options = {"lossless": True} if name.endswith("webp") else {}
        picture(tmp_path / "real" / name, noise(8, 8, 3, seed=number), **options)
    holdout = open_holdout(tmp_path / "real", LABELS, COLOUR)
    assert (holdout.name, len(holdout), holdout.notes) == ("real", 4, ())
    assert holdout.classes is not None
    assert holdout.classes.tolist() == [0, 0, 3, 3]
    expected = [noise(8, 8, 3, seed=seed).transpose(2, 0, 1) for seed in (2, 1, 3, 0)]
    assert np.array_equal(pixels_of(holdout), expected)


def test_pictures_outside_class_folders_have_no_true_class(tmp_path: Path) -> None:
    picture(tmp_path / "1.jpg")
    assert open_holdout(tmp_path, LABELS, GREY).classes is None


def test_hidden_files_and_files_of_other_kinds_are_passed_over(tmp_path: Path) -> None:
    picture(tmp_path / "star" / "1.png")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "star" / "._1.png").write_bytes(b"\0")
    (tmp_path / "star" / "notes.txt").touch()
    assert len(open_holdout(tmp_path, LABELS, GREY)) == 1


def test_other_sizes_are_scaled_without_aliasing_and_told_of(tmp_path: Path) -> None:
    stripes = np.zeros((64, 96), np.uint8)
    stripes[:, ::2] = 255
    picture(tmp_path / "1.png", stripes)
    picture(tmp_path / "2.png")
    holdout = open_holdout(tmp_path, LABELS, GREY)
    assert holdout.notes == ("1 of 2 real images were scaled to 8 x 8 pixels.",)
    assert np.ptp(pixels_of(holdout)[0, 0, :, 1:-1].astype(int)) < 16


def test_a_picture_is_cut_at_the_centre_rather_than_squeezed(tmp_path: Path) -> None:
    sides = np.full((8, 24, 3), 255, np.uint8)
    sides[:, 8:16] = 0
    picture(tmp_path / "1.png", sides)
    assert not pixels_of(open_holdout(tmp_path, LABELS, COLOUR)).any()


def test_colours_are_those_of_the_teacher(tmp_path: Path) -> None:
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    picture(tmp_path / "1.png", red)
    assert (pixels_of(open_holdout(tmp_path, LABELS, GREY)) == 76).all()  # 0.299 of 255: ITU-R BT.601
    picture(tmp_path / "1.png", noise(8, 8))
    assert np.array_equal(pixels_of(open_holdout(tmp_path, LABELS, COLOUR))[0], [noise(8, 8)] * 3)


def test_colours_that_were_made_grey_are_told_of_and_grey_in_three_channels_is_none(tmp_path: Path) -> None:
    for number, pixels in enumerate([noise(8, 8, 3), noise(8, 8), np.stack([noise(8, 8)] * 3, axis=-1)]):
        picture(tmp_path / f"{number}.png", pixels)
    Image.fromarray(noise(8, 8, 3)).convert("P").save(tmp_path / "palette.png", transparency=bytes(range(256)))
    assert open_holdout(tmp_path, LABELS, GREY).notes == ("2 of 4 real images were in colour and were made grey.",)


def test_grey_that_was_made_rgb_is_told_of(tmp_path: Path) -> None:
    picture(tmp_path / "1.png", noise(8, 8))
    picture(tmp_path / "2.png", noise(8, 8, 3))
    Image.fromarray(noise(8, 8)).save(tmp_path / "3.png", transparency=7)
    Image.fromarray(noise(8, 8)).convert("1").save(tmp_path / "4.bmp")
    assert open_holdout(tmp_path, LABELS, COLOUR).notes == ("3 of 4 real images were grey and were made RGB.",)


def test_a_palette_with_transparent_colours_is_read_without_a_warning(tmp_path: Path) -> None:
    image = Image.fromarray(noise(8, 8, 3)).convert("P")
    image.save(tmp_path / "1.png", transparency=bytes(range(256)))
    assert pixels_of(open_holdout(tmp_path, LABELS, COLOUR)).shape == (1, 3, 8, 8)


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: to be turned by a quarter, clockwise.
    picture(tmp_path / "1.png", noise(8, 8), exif=exif)
    assert np.array_equal(pixels_of(open_holdout(tmp_path, LABELS, GREY))[0, 0], np.rot90(noise(8, 8), -1))


@pytest.mark.parametrize(
    ("name", "meant"),
    [("circel", "the nearest is 'circle'."), ("Stars", "the nearest is 'star'."), ("\u0443", "such as 'circle'.")],
)
def test_a_folder_that_is_no_class_is_refused_with_the_nearest_label(tmp_path: Path, name: str, meant: str) -> None:
    picture(tmp_path / name / "1.png")
    error = refusal(tmp_path, UsageError)
    assert error.message == f"The folder {name!r} is called as none of the labels."
    assert error.hint.endswith(meant)


def test_accents_may_be_written_apart_from_their_letters(tmp_path: Path) -> None:
    picture(tmp_path / "cafe\u0301" / "1.png")
    holdout = open_holdout(tmp_path, ("tea", "caf\u00e9"), GREY)
    assert holdout.classes is not None
    assert holdout.classes.tolist() == [1]


@pytest.mark.parametrize(
    ("label", "folder"),
    [
        (".net", ".net"),
        ("on/off", "on_off"),
        ("../away", ".._away"),
        ("/etc", "_etc"),
        ("a\\b", "a_b"),
        (".", "_"),
        ("..", "__"),
    ],
)
def test_a_class_that_no_usual_folder_can_be_called_as_is_found_by_another_name(
    tmp_path: Path, label: str, folder: str
) -> None:
    picture(tmp_path / "real" / folder / "1.png")
    picture(tmp_path / "real" / "star" / "1.png")
    picture(tmp_path / "away" / "1.png")
    (tmp_path / "real" / ".cache").mkdir()
    holdout = open_holdout(tmp_path / "real", ("star", label), GREY)
    assert holdout.classes is not None
    assert sorted(holdout.classes.tolist()) == [0, 1]


def test_a_class_that_leads_out_of_the_folder_is_looked_for_inside_alone(tmp_path: Path) -> None:
    picture(tmp_path / "away" / "1.png")
    (tmp_path / "real").mkdir()
    error = refusal(tmp_path / "real", UsageError, labels=("../away", str(tmp_path / "away"), ".."))
    assert error.message == f"There are no pictures in {str(tmp_path / 'real')!r}."
    assert "such as .._away/1.png" in error.hint


@pytest.mark.parametrize("other", ["on_off", "on\\off"])
def test_a_folder_that_may_be_of_two_classes_is_refused(tmp_path: Path, other: str) -> None:
    picture(tmp_path / "on_off" / "1.png")
    error = refusal(tmp_path, UsageError, labels=("star", "on/off", other))
    assert error.message == f"The folder 'on_off' may be that of the class 'on/off' or of {other!r}."
    assert error.hint == "Give --holdout an .npz, which has the classes by their numbers."


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "star").mkdir()
    assert "There are no pictures in" in refusal(tmp_path, UsageError).message


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "there is no such folder or file" in refusal(tmp_path / "none", UsageError).message
    assert "there is no such folder or file" in refusal(tmp_path / ("x" * 5000), UsageError).message


def test_pictures_beside_class_folders_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "star" / "1.png")
    picture(tmp_path / "2.png")
    assert "holds pictures beside the folder 'star'" in refusal(tmp_path, UsageError).message


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "postscript"])
def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path, damage: str) -> None:
    path = picture(tmp_path / "star" / "a.png", noise(8, 8, 3))
    whole = path.read_bytes()
    contents = {"cut": whole[:-40], "text": b"no picture", "empty": b"", "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n"}
    path.write_bytes(contents[damage])
    assert refusal(tmp_path, InputError).message == "The picture 'star/a.png' cannot be read."


@pytest.mark.parametrize("pixels", [100_000_000, 400_000_000])
def test_a_picture_of_absurdly_many_pixels_is_refused_unread(tmp_path: Path, pixels: int) -> None:
    header = struct.pack(">IIBBBBB", pixels // 10_000, 10_000, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    end = b"IDAT"
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", len(header))
        + (chunk + struct.pack(">I", zlib.crc32(chunk)))
        + (struct.pack(">I", 0) + end + struct.pack(">I", zlib.crc32(end)))
    )
    assert refusal(tmp_path, InputError).message == "The picture 'bomb.png' is absurdly large."


def test_a_picture_of_16_bits_is_refused_rather_than_cut_off(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(tmp_path / "deep.png")
    assert refusal(tmp_path, InputError).message == "The picture 'deep.png' has more than 8 bits a channel."


def test_a_teacher_that_takes_neither_grey_nor_rgb_takes_no_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    four = GREY.model_copy(update={"channels": 4})
    assert "takes images of 4 channels" in refusal(tmp_path, InputError, four).message
    assert len(open_holdout(arrays(tmp_path / "four.npz", images=noise(2, 8, 8, 4)), LABELS, four)) == 2


def test_without_pillow_pictures_are_a_missing_dependency_and_arrays_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "real" / "1.png")
    monkeypatch.setattr("compress.pipeline.holdout.fit.find_spec", lambda _: None)
    assert "pip install 'compress-edge[holdout]'" in refusal(tmp_path / "real", MissingResourceError).hint
    assert len(open_holdout(arrays(tmp_path / "fitting.npz", images=noise(2, 8, 8, 1)), LABELS, GREY)) == 2
    refusal(arrays(tmp_path / "larger.npz", images=noise(2, 9, 9, 1)), MissingResourceError)


# Arrays


@pytest.mark.parametrize("shape", [(5, 3, 8, 8), (5, 8, 8, 3)])
def test_arrays_are_read_with_their_channels_first_or_last(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = noise(*shape)
    path = arrays(tmp_path / "real.npz", images=images, labels=np.array([3, 0, 1, 2, 2], np.uint8))
    holdout = open_holdout(path, LABELS, COLOUR)
    assert holdout.classes is not None
    assert holdout.classes.tolist() == [3, 0, 1, 2, 2]
    assert np.array_equal(pixels_of(holdout), images if shape[1] == 3 else images.transpose(0, 3, 1, 2))


def test_arrays_without_labels_have_no_true_class(tmp_path: Path) -> None:
    assert open_holdout(arrays(tmp_path / "real.npz", images=noise(2, 8, 8, 3)), LABELS, GREY).classes is None


def test_arrays_of_another_size_are_scaled(tmp_path: Path) -> None:
    holdout = open_holdout(arrays(tmp_path / "real.npz", images=noise(2, 3, 12, 20)), LABELS, GREY)
    assert pixels_of(holdout).shape == (2, 1, 8, 8)
    assert holdout.notes == (
        "2 of 2 real images were scaled to 8 x 8 pixels.",
        "2 of 2 real images were in colour and were made grey.",
    )


def test_arrays_of_other_channels_are_recoloured_and_told_of(tmp_path: Path) -> None:
    grey = open_holdout(arrays(tmp_path / "grey.npz", images=noise(2, 8, 8, 1)), LABELS, COLOUR)
    assert grey.notes == ("2 of 2 real images were grey and were made RGB.",)
    colour = open_holdout(arrays(tmp_path / "colour.npz", images=noise(2, 3, 8, 8)), LABELS, GREY)
    assert colour.notes == ("2 of 2 real images were in colour and were made grey.",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"pictures": noise(2, 8, 8, 1)}, "There are no 'images' in "),
        ({"images": noise(2, 8, 8, 1).astype(np.float32)}, "are float32 [2, 8, 8, 1]."),
        ({"images": noise(2, 8, 8)}, "are uint8 [2, 8, 8]."),
        ({"images": np.asfortranarray(noise(2, 8, 8, 1))}, "are uint8 [2, 8, 8, 1] by columns."),
        ({"images": noise(2, 0, 8, 1)}, "are uint8 [2, 0, 8, 1]."),
        ({"images": noise(2, 8, 8, 5)}, "are [2, 8, 8, 5], and the teacher takes 1 x 8 x 8."),
        ({"images": np.array([object()])}, "are object [1]."),
        ({"images": noise(2, 8, 8, 1), "labels": np.array([0.0, 1.0])}, "are float64 [2] for 2 images."),
        ({"images": noise(2, 8, 8, 1), "labels": np.array([0])}, "are int64 [1] for 2 images."),
        ({"images": noise(2, 8, 8, 1), "labels": np.array([0, 4])}, "name class 4, but classes run from 0 to 3."),
        ({"images": noise(2, 8, 8, 1), "labels": np.array([-1, 0])}, "name class -1, but classes run from 0 to 3."),
        ({"images": noise(2, 8, 8, 1), "labels": np.array([object(), 0])}, "are object [2] for 2 images."),
    ],
)
def test_arrays_of_another_kind_are_refused_with_what_they_are(
    tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    error = refusal(arrays(tmp_path / "real.npz", **content), InputError)
    assert message in error.message
    assert "numpy.savez" in error.hint


def test_no_images_at_all_are_refused(tmp_path: Path) -> None:
    refusal(arrays(tmp_path / "real.npz", images=noise(0, 8, 8, 1)), UsageError)


def test_what_is_no_archive_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = arrays(tmp_path / "real.npz", images=noise(40, 8, 8, 1))
    content = path.read_bytes()
    inside = content[:500] + bytes(200) + content[700:]
    for damaged in (b"text", b"", content[:-100], inside):
        path.write_bytes(damaged)
        assert "is no .npz that can be read" in refusal(path, InputError).message
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", b"no array")
    assert "is no .npz that can be read" in refusal(path, InputError).message


def test_images_that_claim_to_be_huge_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "real.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("images.npy", "w") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": (1, 10**6, 10**6, 1)}
        np.lib.format.write_array_header_1_0(stream, header)
    assert "are uint8 [1, 1000000, 1000000, 1]." in refusal(path, InputError).message


# Both


def test_the_digest_is_that_of_pixels_and_classes_however_they_are_stored(tmp_path: Path) -> None:
    images = noise(3, 8, 8, 1)
    for number, image in enumerate(images):
        picture(tmp_path / "real" / "star" / f"{number}.png", image[..., 0])
    holdouts = [
        open_holdout(path, LABELS, GREY)
        for path in (
            tmp_path / "real",
            arrays(tmp_path / "same.npz", images=images, labels=[3, 3, 3]),
            arrays(tmp_path / "unknown.npz", images=images),
            arrays(tmp_path / "others.npz", images=images, labels=[3, 3, 2]),
            arrays(tmp_path / "darker.npz", images=images // 2, labels=[3, 3, 3]),
        )
    ]
    assert holdouts[0].sha256 == holdouts[1].sha256
    assert len({holdout.sha256 for holdout in holdouts}) == 4


def test_an_archive_that_vanishes_during_the_run_is_told_of(tmp_path: Path) -> None:
    path = arrays(tmp_path / "real.npz", images=noise(3, 8, 8, 1))
    holdout = open_holdout(path, LABELS, GREY)
    path.unlink()
    with pytest.raises(InputError, match=r"real\.npz' cannot be read: No such file or directory"):
        list(holdout.batches())


@pytest.mark.parametrize("header", ["{'descr': '|u1', 'shape': (", "{[]:1}"])
def test_a_damaged_header_is_told_of(tmp_path: Path, header: str) -> None:
    with zipfile.ZipFile(tmp_path / "real.npz", "w") as archive:
        text = header.encode() + b"\n"
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    with pytest.raises(InputError, match=r"real\.npz' is no \.npz that can be read"):
        open_holdout(tmp_path / "real.npz", LABELS, GREY)


def test_an_archive_that_claims_more_images_than_there_can_be_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "real.npz", "w") as archive:
        text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999, 8, 8, 1), }\n"
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    with pytest.raises(InputError, match="claims to hold 99,999,999,999 images"):
        open_holdout(tmp_path / "real.npz", LABELS, GREY)


def test_images_that_change_after_they_were_opened_are_noticed(tmp_path: Path) -> None:
    path = picture(tmp_path / "real" / "1.png")
    holdout = open_holdout(tmp_path / "real", LABELS, GREY)
    picture(path, noise(8, 8, seed=1))
    with pytest.raises(InputError, match="were changed during the run"):
        list(holdout.batches())


def test_the_memory_never_holds_all_images(tmp_path: Path) -> None:
    wanted = COLOUR.model_copy(update={"height": 32, "width": 32})
    path = arrays(tmp_path / "real.npz", images=np.zeros((4000, 32, 32, 3), np.uint8))
    tracemalloc.start()
    count = sum(len(batch) for batch in open_holdout(path, LABELS, wanted).batches())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 4000
    assert peak < 4000 * 32 * 32 * 3 / 2


# What is measured


class Broken(TorchRunner):
    """Answers with NaN."""

    def _run(self, images: Images | Bytes) -> NDArray[np.float32]:
        return super()._run(images) * np.float32(np.nan)


class Shifted(TorchRunner):
    """Names the class after the right one on the dark images, whose top left pixel tells them."""

    def _run(self, images: Images | Bytes) -> NDArray[np.float32]:
        logits = super()._run(images)
        dark = images[:, 0, 0, 0] < 0.5
        return np.where(dark[:, None], np.roll(logits, 1, axis=1), logits)


@pytest.fixture
def teacher() -> Teacher:
    return tiny_teacher(channels=1)


def test_agreement_and_accuracy_are_counted_over_all_batches(tmp_path: Path, teacher: Teacher) -> None:
    images = noise(150, 8, 8, 1)
    with torch.inference_mode():
        answers = teacher.logits(torch.from_numpy(images.transpose(0, 3, 1, 2) / np.float32(255))).argmax(1).numpy()
    labels = answers.copy()
    labels[:30] = (labels[:30] + 1) % 4
    path = arrays(tmp_path / "real.npz", images=images, labels=labels)
    holdout, heard = open_holdout(path, LABELS, teacher.record.input), []
    network = teacher.network
    runners = {"same": TorchRunner(network), "shifted": Shifted(network), "broken": Broken(network)}
    record = measure(holdout, teacher, runners, lambda done, total, _: heard.append((done, total)))
    assert heard == [(64, 150), (128, 150), (150, 150)]
    assert (record.name, record.images, record.sha256) == ("real.npz", 150, holdout.sha256)
    assert record.teacher_accuracy == proportion(120, 150)
    bright = images[:, 0, 0, 0] > 127
    same, shifted, broken = record.rows
    assert (same.artifact, same.agreement, same.accuracy) == ("same", proportion(150, 150), proportion(120, 150))
    assert shifted.agreement == proportion(int(bright.sum()), 150)
    assert shifted.accuracy == proportion(int(bright[30:].sum() + (~bright[:30]).sum()), 150)
    assert (broken.agreement, broken.accuracy) == (proportion(0, 150), proportion(0, 150))


def test_without_true_classes_there_is_no_accuracy(tmp_path: Path, teacher: Teacher) -> None:
    holdout = open_holdout(arrays(tmp_path / "real.npz", images=noise(3, 8, 8, 1)), LABELS, teacher.record.input)
    record = measure(holdout, teacher, {"same": TorchRunner(teacher.network)})
    assert record.teacher_accuracy is record.rows[0].accuracy is None
    assert record.rows[0].agreement == proportion(3, 3)


@pytest.mark.parametrize("wrong", [False, True])
def test_classes_that_the_teacher_takes_for_others_throughout_are_told_of(tmp_path: Path, wrong: bool) -> None:
    images = noise(150, 3, 8, 8)
    named = tiny_teacher().logits(torch.from_numpy(images).float() / 255).argmax(1).numpy()
    first, second = np.argsort(-np.bincount(named, minlength=4))[:2]
    swapped = np.where(named == first, second, np.where(named == second, first, named))
    holdout = open_holdout(
        arrays(tmp_path / "real.npz", images=images, labels=swapped if wrong else named), LABELS, COLOUR
    )
    record = measure(holdout, tiny_teacher(), {}, labels=LABELS)
    pairs = (f"{LABELS[one]} for {LABELS[other]}" for one, other in ((first, second), (second, first)))
    assert all((pair in record.warning) is wrong for pair in pairs)
    assert (
        record.warning.endswith("are the labels in the order of its outputs, and the images in the right places?")
        is wrong
    )
