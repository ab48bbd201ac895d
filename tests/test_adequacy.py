import numpy as np

from compress.pipeline.adequacy import assess_adequacy
from compress.pipeline.proportions import proportion
from tests.verdicts import CLASSES, PROBES, assessed, probes


def test_confident_probes_of_every_class_are_adequate() -> None:
    adequacy = assessed(*probes())
    assert adequacy.adequate
    assert adequacy.reasons == ()
    assert adequacy.classes_seen == CLASSES
    assert adequacy.largest_class_share == 0.1
    assert adequacy.on_target == proportion(500, 500)
    assert adequacy.median_confidence > 0.95


def test_images_that_were_left_out_count_where_it_is_told_how_many_were_recognised() -> None:
    logits, targets, kinds = probes()
    told = assess_adequacy(logits, targets, kinds == "synthesised", unrecognised=125)
    assert told.on_target == proportion(500, 625)


def test_the_confidence_is_that_of_the_probes_made_for_a_class() -> None:
    logits, targets, kinds = probes()
    flat = np.where((kinds == "mixed")[:, None], logits / 100, logits)
    before, after = (assessed(x, targets, kinds) for x in (logits, flat))
    assert before.median_confidence == after.median_confidence


def test_up_to_nineteen_classes_every_class_must_be_named() -> None:
    logits, targets, kinds = probes(classes=19)
    logits[:, 18] = -20
    adequacy = assessed(logits, targets, kinds)
    assert not adequacy.adequate
    assert adequacy.reasons == ("the teacher names only 18 of 19 classes on them",)


def test_collapsed_probes_are_inadequate_although_a_few_name_the_other_classes() -> None:
    logits, targets, kinds = probes()
    logits[20:, 0] += 50
    adequacy = assessed(logits, targets, kinds)
    assert adequacy.classes_seen == CLASSES
    assert adequacy.reasons == ("the teacher gives one and the same answer to 98.2 % of them",)


def test_unsure_probes_are_inadequate() -> None:
    adequacy = assessed(*probes(margin=2.5))
    assert len(adequacy.reasons) == 1
    assert adequacy.reasons[0].startswith("the teacher's median confidence on those made for a class is ")
    assert adequacy.reasons[0].endswith("below 55.0 %")  # (1 + 1/10) / 2


def test_probes_none_of_which_was_made_for_a_class_are_inadequate() -> None:
    logits, targets, kinds = probes()
    adequacy = assessed(logits, targets, np.full_like(kinds, "mixed"))
    assert adequacy.median_confidence == 0
    assert not adequacy.adequate


def test_copies_of_few_images_are_inadequate() -> None:
    logits, targets, kinds = probes()
    copies = logits[np.arange(PROBES) % CLASSES]
    adequacy = assessed(copies, targets, kinds)
    assert adequacy.reasons == ("only 1.0 % of them differ from each other",)


def test_a_teacher_that_answers_with_nan_makes_the_probes_inadequate() -> None:
    logits, targets, kinds = probes()
    logits[0, 0] = np.nan
    adequacy = assessed(logits, targets, kinds)
    assert adequacy.reasons == ("the teacher itself answers 1 of them with NaN or infinity",)


def test_no_probes_are_inadequate() -> None:
    logits, targets, kinds = probes()
    assert not assessed(logits[:0], targets[:0], kinds[:0]).adequate


def test_probes_that_the_student_learned_from_carry_no_verdict() -> None:
    # A hundredth of 1,000 may be like images of the pool.
    assert assessed(*probes(), copied=10).adequate
    copies = assessed(*probes(), copied=11)
    assert (copies.adequate, copies.reasons) == (False, ("the student learned from 1.1 % of them",))
