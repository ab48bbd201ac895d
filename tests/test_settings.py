import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from compress.exporters.targets import load_target, target_names
from compress.pipeline import settings as module
from compress.pipeline.errors import UsageError
from compress.pipeline.setting_errors import known_keys
from compress.pipeline.settings import Settings, assignment, merge, recipe_names, resolve_settings


def config_file(folder: Path, text: str) -> Path:
    path = folder / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(command_line: dict[str, Any], environment: dict[str, str] | None = None, config: Path | None = None) -> str:
    """The message of the refusal, hint included."""
    with pytest.raises(UsageError) as caught:
        resolve_settings(command_line, environment=environment or {}, config=config)
    return str(caught.value)


# Where settings come from


@pytest.fixture
def presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe and a target that both have something to say about rounds and gates."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "default.yaml").write_text(
        "{distill: {rounds: 2, batches: 2, kd_steps: 2}, gates: {max_size_mb: 2, max_mean_kl: 2}}"
    )
    gates = {"max_size_mb": 3, "min_agreement": None}
    preferences = {"distill": {"rounds": 3, "kd_steps": 3}}
    target = load_target("onnx").model_dump() | {"gates": gates, "settings": preferences}
    loaded = type(load_target("onnx")).model_validate(target)
    monkeypatch.setattr(module, "presets_folder", lambda: tmp_path)
    monkeypatch.setattr(module, "load_target", lambda name: loaded)


@pytest.mark.usefixtures("presets")
def test_a_recipe_takes_what_it_does_not_say_from_the_one_that_it_is_based_on(tmp_path: Path) -> None:
    (tmp_path / "recipes" / "longer.yaml").write_text("{based_on: default, distill: {batches: 9}}")
    (tmp_path / "recipes" / "longest.yaml").write_text("{based_on: longer, gates: {max_mean_kl: 7}}")
    settings = resolve_settings({"recipe": "longest"}, environment={})
    assert (settings.distill.batches, settings.gates.max_mean_kl) == (9, 7)
    assert settings.distill.rounds == 3  # the target's, which outranks all of them


@pytest.mark.usefixtures("presets")
def test_each_source_outranks_the_ones_below_it(tmp_path: Path) -> None:
    config = config_file(tmp_path, "distill: {rounds: 4, batches: 4}")
    environment = {"COMPRESS_DISTILL__ROUNDS": "5", "PATH": "/bin"}
    only_presets = resolve_settings({}, environment={})
    with_config = resolve_settings({}, environment={}, config=config)
    with_environment = resolve_settings({}, environment=environment, config=config)
    with_all = resolve_settings({"distill": {"rounds": 6}}, environment=environment, config=config)
    assert [
        (settings.distill.rounds, settings.distill.batches, settings.distill.kd_steps, settings.distill.warmup_rounds)
        for settings in (only_presets, with_config, with_environment, with_all)
    ] == [(3, 2, 3, 4), (4, 4, 3, 4), (5, 4, 3, 4), (6, 4, 3, 4)]


@pytest.mark.usefixtures("presets")
def test_gates_of_the_target_outrank_the_recipes_and_a_gate_can_be_taken_away() -> None:
    gates = resolve_settings({}, environment={}).gates
    assert (gates.max_size_mb, gates.max_mean_kl, gates.min_agreement) == (3, 2, None)
    assert resolve_settings({"gates": {"max_size_mb": None}}, environment={}).gates.max_size_mb is None


def test_target_and_recipe_may_come_from_any_source(tmp_path: Path) -> None:
    config = config_file(tmp_path, "target: cpu-x86\nrecipe: smoke")
    settings = resolve_settings({}, environment={"COMPRESS_TARGET": "onnx"}, config=config)
    assert (settings.target, settings.recipe) == ("onnx", "smoke")
    smoke = yaml.safe_load((module.presets_folder() / "recipes" / "smoke.yaml").read_text())
    assert settings.distill.rounds == smoke["distill"]["rounds"]


@pytest.mark.parametrize("recipe", recipe_names())
@pytest.mark.parametrize("target", target_names())
def test_every_shipped_recipe_suits_every_shipped_target_and_survives_a_round_trip(
    tmp_path: Path, recipe: str, target: str
) -> None:
    settings = resolve_settings({"recipe": recipe, "target": target}, environment={})
    assert (settings.recipe, settings.target) == (recipe, target)
    config = config_file(tmp_path, yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
    assert resolve_settings({}, environment={}, config=config) == settings


def test_an_empty_config_changes_nothing(tmp_path: Path) -> None:
    assert resolve_settings({}, environment={}, config=config_file(tmp_path, "# all as usual\n")) == resolve_settings(
        {}, environment={}
    )


@pytest.mark.parametrize("source", ["command line", "environment", "config"])
def test_what_yaml_takes_for_text_is_still_a_number(tmp_path: Path, source: str) -> None:
    # PyYAML follows YAML 1.1, in which 1e-3 without a point is a word.
    assert yaml.safe_load("1e-3") == "1e-3"
    command_line = assignment("distill.learning_rate=1e-3") if source == "command line" else {}
    environment = {"COMPRESS_DISTILL__LEARNING_RATE": "1e-3"} if source == "environment" else {}
    config = config_file(tmp_path, "distill: {learning_rate: 1e-3}") if source == "config" else None
    assert resolve_settings(command_line, environment=environment, config=config).distill.learning_rate == 0.001


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("seed=3", {"seed": 3}),
        ("distill.rounds=50", {"distill": {"rounds": 50}}),
        ("quantize.exclude=[conv1, fc]", {"quantize": {"exclude": ["conv1", "fc"]}}),
        ("embed.prompt=a {label} = b", {"embed": {"prompt": "a {label} = b"}}),
        ("gates.min_agreement=null", {"gates": {"min_agreement": None}}),
    ],
)
def test_assignments_set_one_value(text: str, values: dict[str, Any]) -> None:
    assert assignment(text) == values


def test_merging_replaces_values_and_keeps_their_neighbours() -> None:
    assert merge({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 3}, "d": [2]}) == {"a": {"b": 3, "c": 2}, "d": [2]}


def test_the_defaults_are_not_touched_by_what_is_merged_over_them() -> None:
    lower: dict[str, Any] = {"a": {"b": 1}}
    merge(lower, {"a": {"b": 2}})
    assert lower == {"a": {"b": 1}}


# What is refused


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("distil.rounds", "Did you mean 'distill'?"),
        ("distill.ronds", "Did you mean 'distill.rounds'?"),
        ("sede", "Did you mean 'seed'?"),
        ("teacher.inputsize", "Did you mean 'teacher.input_size'?"),
        ("gates.min_agrement", "Did you mean 'gates.min_agreement'?"),
        ("kd_step", "Did you mean 'distill.kd_steps'?"),
        ("temperature", "Did you mean 'distill.temperature' or 'quantize.temperature'?"),
        ("student.rounds", "Did you mean 'distill.rounds'?"),
        ("zzz", "`compress schema` tells all settings."),
        ("distill.zzz", "`compress schema` tells all settings."),
        ("distill.", "`compress schema` tells all settings."),
    ],
)
def test_an_unknown_setting_is_named_with_the_nearest_known_one(key: str, hint: str) -> None:
    unknown = "distil" if key.startswith("distil.") else key
    assert refused(assignment(f"{key}=3")) == f"There is no setting '{unknown}'.\n{hint}"


def test_a_value_below_a_value_is_refused() -> None:
    assert refused(assignment("distill.rounds.first=3")).startswith(
        "The setting 'distill.rounds' cannot be {'first': 3}: it must be a whole number."
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("distill.rounds=0", "The setting 'distill.rounds' cannot be 0: it must be at least 1."),
        ("distill.rounds=2.5", "The setting 'distill.rounds' cannot be 2.5: it must be a whole number."),
        ("distill.rounds=many", "The setting 'distill.rounds' cannot be 'many': it must be a whole number."),
        ("distill.momentum=1", "The setting 'distill.momentum' cannot be 1: it must be less than 1."),
        ("distill.temperature=0", "The setting 'distill.temperature' cannot be 0: it must be more than 0."),
        ("distill.temperature=warm", "The setting 'distill.temperature' cannot be 'warm': it must be a number."),
        (
            "synthesis.learning_rate=.inf",
            "The setting 'synthesis.learning_rate' cannot be inf: it must be a finite number.",
        ),
        ("gates.min_agreement=90", "The setting 'gates.min_agreement' cannot be 90: it must be at most 1."),
        ("gates.max_mean_kl=.nan", "The setting 'gates.max_mean_kl' cannot be nan: it must be a finite number."),
        (
            "distill.annealed=[0.5, 1]",
            (
                "The setting 'distill.annealed' cannot be [0.5, 1]: it must be a list of distill.rounds numbers, each "
                "above the one before, or null."
            ),
        ),
        ("distill.annealed=[2]", "The setting 'distill.annealed.0' cannot be 2: it must be at most 1."),
        ("dynamic_batch=perhaps", "The setting 'dynamic_batch' cannot be 'perhaps': it must be true or false."),
        ("precision=fp8", "The setting 'precision' cannot be 'fp8': it must be 'auto', 'fp32' or 'bf16'."),
        ("device=gpu", "The setting 'device' cannot be 'gpu': it must be of another form."),
        ("embed.prompt=a photo", "The setting 'embed.prompt' cannot be 'a photo': it must be of another form."),
        ("student.name=20", "The setting 'student.name' cannot be 20: it must be text."),
        ("teacher.mean=0.5", "The setting 'teacher.mean' cannot be 0.5: it must be a list."),
        ("teacher.mean=[0.5, grey]", "The setting 'teacher.mean.1' cannot be 'grey': it must be a number."),
        ("distill=3", "The setting 'distill' cannot be 3: it must be a group of settings."),
        ("seed=" + "x" * 99, "The setting 'seed' cannot be '" + "x" * 59 + "...: it must be a whole number."),
    ],
)
def test_a_value_that_is_out_of_the_question_is_refused_in_one_plain_sentence(text: str, sentence: str) -> None:
    message, _, hint = refused(assignment(text)).partition("\n")
    assert message == sentence
    assert hint.strip()


def test_the_hint_says_what_the_setting_is_for() -> None:
    assert refused(assignment("device=gpu")).endswith(
        "device: Where synthesis and distillation run: `auto`, `cpu`, `cuda` or, for one GPU of several, `cuda:1`."
    )
    assert refused(assignment("gates=3")).endswith(
        "Its settings are min_agreement, min_class_agreement, max_mean_kl, max_size_mb, max_latency_ms."
    )


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("COMPRESS_DISTIL__ROUNDS", "3", "There is no setting 'distil' (from COMPRESS_DISTIL__ROUNDS)."),
        ("COMPRESS_Distill__ronds", "3", "There is no setting 'distill.ronds' (from COMPRESS_Distill__ronds)."),
        ("COMPRESS_SEED", "-1", "The setting 'seed' cannot be -1 (from COMPRESS_SEED): it must be at least 0."),
        (
            "COMPRESS_TEACHER__MEAN",
            "[grey]",
            "The setting 'teacher.mean.0' cannot be 'grey' (from COMPRESS_TEACHER__MEAN): it must be a number.",
        ),
        ("COMPRESS_SEED", "[", "The value of 'COMPRESS_SEED=[' cannot be read."),
    ],
)
def test_a_variable_that_is_wrong_is_named(variable: str, value: str, sentence: str) -> None:
    assert refused({}, {variable: value, "COMPRESS_TARGET": "onnx"}).startswith(sentence)


def test_a_file_that_is_wrong_is_named(tmp_path: Path) -> None:
    config = config_file(tmp_path, "distill: {rounds: 0}")
    environment = {"COMPRESS_DISTILL__BATCHES": "2"}
    assert f"cannot be 0 (from {config}): it must be" in refused({}, environment, config)


def test_only_the_source_that_won_is_blamed(tmp_path: Path) -> None:
    config = config_file(tmp_path, "seed: -3")
    assert "cannot be -1 (from COMPRESS_SEED)" in refused({}, {"COMPRESS_SEED": "-1"}, config)
    assert "cannot be -2: it must be" in refused({"seed": -2}, {"COMPRESS_SEED": "-1"}, config)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("seed: [1", "is not YAML."),
        ("seed: 2020-13-45", "is not YAML."),
        ("just words", "holds no settings."),
        ("- seed", "holds no settings."),
        ("1: 2", "There is no setting '1'"),
    ],
)
def test_a_config_that_is_no_list_of_settings_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    assert sentence in refused({}, config=config_file(tmp_path, text))


def test_a_config_that_cannot_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    assert f"Cannot read '{tmp_path / 'none.yaml'}': No such file or directory." in refused(
        {}, config=tmp_path / "none.yaml"
    )
    assert "Is a directory." in refused({}, config=tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "is not YAML." in refused({}, config=tmp_path / "binary.yaml")


@pytest.mark.parametrize("text", ["seed", "=3", "", "seed=[", "seed=2020-13-45"])
def test_what_is_no_assignment_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"sets nothing\.|cannot be read\.") as caught:
        assignment(text)
    assert caught.value.hint


@pytest.mark.parametrize("recipe", ["smok", "../recipes/smoke", None, ["smoke"]])
def test_an_unknown_recipe_is_refused_with_those_that_exist(recipe: object) -> None:
    message = refused({"recipe": recipe})
    assert message.startswith(f"There is no recipe '{recipe}'.")
    assert message.endswith(
        "Recipes: balanced, default, imagenet, paper-cifar10, paper-cifar100, paper-tiny-imagenet, quick, smoke, thorough."
    )


def test_settings_cannot_be_changed_afterwards() -> None:
    settings = resolve_settings({}, environment={})
    with pytest.raises(ValueError, match="frozen"):
        settings.seed = 3


# The schema


def properties(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for group in (schema, *schema["$defs"].values()):
        yield from group["properties"].items()


def test_the_schema_describes_every_setting() -> None:
    schema = json.loads(json.dumps(Settings.model_json_schema()))
    described = dict(properties(schema))
    assert {key.rpartition(".")[2] for key in known_keys(Settings)} == described.keys()
    without = [name for name, entry in described.items() if not (entry.get("description") or "$ref" in entry)]
    assert without == []
    assert all(group["description"] for group in schema["$defs"].values())
    assert schema["$defs"]["DistillSettings"]["properties"]["rounds"]["minimum"] == 1
