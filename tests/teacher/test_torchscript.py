import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.pipeline.errors import InputError, UnsafeInputError
from compress.pipeline.jail.child import Refused
from compress.pipeline.jail.parent import Jailed
from compress.pipeline.teacher.checkpoint import Checkpoint
from compress.pipeline.teacher.programs import torchscript
from compress.pipeline.teacher.programs.graph import Operation, ProgramGraph, TensorRef, ValueRef
from compress.pipeline.teacher.programs.guarded import GuardedNetwork
from compress.pipeline.teacher.programs.torchscript import interpreter, read_torchscript
from compress.pipeline.teacher.programs.torchscript.answer import CONSTANT, Answer, pack, unpack
from compress.pipeline.teacher.programs.torchscript.interpreter import Interpreter
from compress.pipeline.teacher.programs.torchscript.jailed import read
from compress.pipeline.teacher.programs.torchscript.values import Held
from tests.networks import unsettle
from tests.teacher.scriptable import CLASSIFIERS, Features
from tests.teacher.small_resnet import SmallResNet, small_resnet
from tests.teacher.test_model import teacher_of

# It will go; until then archives are made with it, here and by the owners of teachers.
pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`torch\.jit\.:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

NETWORKS = (SmallResNet, *CLASSIFIERS)
WAYS = ("scripted", "traced")


def images(count: int = 3, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size)


def trained(kind: Callable[[], nn.Module]) -> nn.Module:
    return unsettle(kind()).eval()


def saved(network: nn.Module, way: str) -> bytes:
    """The archive that an owner would have made of it, traced with two images."""
    archive = io.BytesIO()
    module = torch.jit.script(network) if way == "scripted" else torch.jit.trace(network, images(2), check_trace=False)
    torch.jit.save(module, archive)
    return archive.getvalue()


def answered(archive: bytes) -> Answer:
    """What the jail would answer, made in this process: these archives are this test's own."""
    return unpack(bytearray(b"".join(read(io.BytesIO(archive)))))


def rebuilt(archive: bytes) -> GuardedNetwork:
    answer = answered(archive)
    return GuardedNetwork(answer.graph, answer.tensors, "t.pt")


def assert_same(network: nn.Module, original: nn.Module) -> None:
    """Answers, and their gradients with respect to the images."""
    asked = [images().requires_grad_() for _ in range(2)]
    asked[1].data.copy_(asked[0].data)
    answers = [network(asked[0]), original(asked[1])]
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-5, atol=1e-5)
    for answer in answers:
        answer.square().sum().backward()
    torch.testing.assert_close(asked[0].grad, asked[1].grad, rtol=1e-5, atol=1e-5)
    assert asked[0].grad is not None and asked[0].grad.abs().sum() > 0


# what an archive does


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_network_of_an_archive_is_the_one_that_was_saved(kind: Callable[[], nn.Module], way: str) -> None:
    network = trained(kind)
    copy = rebuilt(saved(network, way))
    assert_same(copy, network)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d)]
    assert sum(isinstance(module, nn.BatchNorm2d) for module in copy.modules()) == len(norms) - unused_norms(network)
    assert not any(parameter.requires_grad for parameter in copy.parameters())


def unused_norms(network: nn.Module) -> int:
    """Those that no image passes."""
    passed: list[nn.Module] = []
    hooks = [
        module.register_forward_pre_hook(lambda norm, _: passed.append(norm))
        for module in network.modules()
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d)
    ]
    network(images())
    for hook in hooks:
        hook.remove()
    return len(hooks) - len(set(passed))


@pytest.mark.parametrize("way", WAYS)
def test_a_teacher_sees_what_enters_every_batch_norm(way: str) -> None:
    original, copy = teacher_of(small_resnet()), teacher_of(rebuilt(saved(small_resnet(), way)))
    batch = images()
    logits, entering = original.logits_and_bn_inputs(batch)
    same_logits, same_entering = copy.logits_and_bn_inputs(batch)
    torch.testing.assert_close(same_logits, logits, rtol=1e-5, atol=1e-5)
    assert len(same_entering) == len(entering) == 8
    for ours, theirs in zip(same_entering, entering, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    for mine, wanted in zip(copy.bn_statistics, original.bn_statistics, strict=True):
        assert torch.equal(mine.mean, wanted.mean) and torch.equal(mine.variance, wanted.variance)


def test_tensors_have_the_names_that_they_have_in_the_network() -> None:
    network = small_resnet()
    answer = answered(saved(network, "scripted"))
    assert answer.tensors.keys() == network.state_dict().keys()
    assert all(torch.equal(answer.tensors[name], tensor) for name, tensor in network.state_dict().items())
    assert not answer.training


def test_half_precision_is_computed_in_float32() -> None:
    network = trained(Straight).half()
    answer = answered(saved(network, "scripted"))
    assert answer.tensors["conv.weight"].dtype == torch.float16
    assert_same(GuardedNetwork(answer.graph, torchscript._in_float32(answer.tensors), "t.pt"), network.float())


class Straight(Features):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x))


class WithDropout(Features):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(self.stem(x), 0.5, self.training))


def test_a_trace_taken_in_training_mode_is_evaluated_as_after_training() -> None:
    network = trained(WithDropout)
    archive = saved(network.train(), "traced")
    answer = answered(archive)
    assert answer.training
    assert_same(GuardedNetwork(answer.graph, answer.tensors, "t.pt"), network.eval())


def test_a_module_scripted_in_training_mode_is_taken_in_evaluation_mode() -> None:
    network = trained(WithDropout)
    answer = answered(saved(network.train(), "scripted"))
    assert not answer.training
    assert_same(GuardedNetwork(answer.graph, answer.tensors, "t.pt"), network.eval())


def test_frozen_archives_have_constants_in_place_of_weights() -> None:
    network = trained(Straight)
    archive = io.BytesIO()
    torch.jit.save(torch.jit.freeze(torch.jit.script(network)), archive)
    answer = answered(archive.getvalue())
    assert all(name.startswith(CONSTANT) for name in answer.tensors)
    assert_same(GuardedNetwork(answer.graph, answer.tensors, "t.pt"), network)


class InAList(Features):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.head(self.stem(x)), None


class InADictionary(Features):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.stem(x))}


@pytest.mark.parametrize(("kind", "key"), [(InAList, 0), (InADictionary, "logits")])
def test_logits_in_a_tuple_or_dictionary_are_taken_out(kind: Callable[[], nn.Module], key: int | str) -> None:
    network = trained(kind)
    batch = images()
    assert torch.equal(rebuilt(saved(network, "scripted"))(batch), network(batch)[key])


class WithOption(Features):
    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        return self.head(self.stem(x)) * scale


def test_other_inputs_have_their_defaults() -> None:
    network = trained(WithOption)
    assert_same(rebuilt(saved(network, "scripted")), network)


class OverwritesAView(Features):
    def forward(self, x: Tensor) -> Tensor:
        flat = self.conv(x).flatten(2)
        flat.mul_(2.0)
        return self.fc(flat.mean(2))  # type: ignore[no-any-return]


def test_a_view_may_be_overwritten_where_nothing_else_sees_it() -> None:
    network = trained(OverwritesAView)
    assert_same(rebuilt(saved(network, "scripted")), network)


@pytest.mark.parametrize("count", [12, 13])
def test_convolutions_of_old_archives_may_have_one_argument_less(count: int) -> None:
    arguments = ["%x", "%w", "%none", "%ones", "%ones", "%ones", "%no", "%zeros", "%one", "%no", "%no", "%no", "%no"]
    graph = torch._C.parse_ir(f"""
        graph(%x : Tensor, %w : Tensor):
          %none : NoneType = prim::Constant()
          %no : bool = prim::Constant[value=0]()
          %one : int = prim::Constant[value=1]()
          %zeros : int[] = prim::Constant[value=[0, 0]]()
          %ones : int[] = prim::Constant[value=[1, 1]]()
          %y : Tensor = aten::_convolution({", ".join(arguments[:count])})
          return (%y)""")
    run = Interpreter()
    given = (Held(ValueRef("images"), 4), Held(TensorRef("w"), 4))
    run.values |= zip([entering.debugName() for entering in graph.inputs()], given, strict=True)
    run.run(graph)
    wanted = (ValueRef("images"), TensorRef("w"), None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1)
    assert run.recorder.operations == [Operation("v0", "aten.convolution.default", wanted)]
    assert run.values[next(graph.outputs()).debugName()].rank == 4


# what an archive may not do


class Random(Features):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x + torch.rand_like(x)))


class TwoAnswers(Features):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(self.stem(x)), x


class TwoInputs(Features):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.stem(x + y))


class Constant(Features):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc.weight


class OverwritesPart(Features):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x[:, :4].relu_()
        return self.head(x)


class Counts(Features):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1.0)
        return self.head(self.stem(x))


class Remembers(Features):
    def __init__(self) -> None:
        super().__init__()
        self.sizes = [1]

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(2)
        return self.head(self.stem(x))


class Assigns(Features):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.stem(x))


class Branches(Features):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x if x.shape[0] > 2 else 2 * x))


class Repeats(Features):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(x.shape[2]):
            x = 2 * x
        return self.head(self.stem(x))


class Endless(Features):
    def forward(self, x: Tensor) -> Tensor:
        count = 0
        while count >= 0:
            count = (count + 1) % 7
        return self.head(self.stem(x))


class Fails(Features):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("never")


class Saves(Features):
    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, "canary")
        return self.head(self.stem(x))


class ReadsAFile(Features):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x + torch.from_file("canary", False, 1)))


class Complex(Features):
    waves: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("waves", torch.zeros(1, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x))


class WithoutForward(nn.Module):
    @torch.jit.export
    def answer(self, x: Tensor) -> Tensor:
        return x


REFUSALS: dict[Callable[[], nn.Module], str] = {
    Random: "uses the operator aten::rand_like, which a teacher may not.",
    TwoAnswers: "answers with 2 tensors rather than with logits alone.",
    TwoInputs: "takes 2 inputs rather than images alone.",
    Constant: "answers with a constant.",
    OverwritesPart: "overwrites in place a part of a tensor that it uses again, which a teacher may not.",
    Counts: "changes its own 'calls' when it runs, which a teacher may not.",
    Remembers: "changes its own lists when it runs, which a teacher may not.",
    Assigns: "uses the operator prim::SetAttr, which a teacher may not.",
    Branches: "branches on aten::gt, whose value is not known before it runs.",
    Repeats: "repeats itself as often as what it computes says, whose value is not known before it runs.",
    Endless: "takes more than 1,000 steps.",
    Fails: "stops with an error of its own whatever the images are.",
    Saves: "uses the operator aten::save, which a teacher may not.",
    ReadsAFile: "uses the operator aten::from_file, which a teacher may not.",
    Complex: "holds 'waves' in another form than plain numbers, such as quantized ones.",
    WithoutForward: "has no forward to run.",
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_what_a_teacher_may_not_do_is_named(kind: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "MOST_STEPS", 1_000)
    with pytest.raises(Refused) as refused:
        answered(saved(kind(), "scripted"))
    assert str(refused.value) == REFUSALS[kind]


def test_an_operator_that_nobody_knows_is_named() -> None:
    code = saved(trained(Straight), "scripted")
    with pytest.raises(Refused, match=r"^cannot be loaded as TorchScript: Unknown builtin op: evil::run\.$"):
        answered(rewritten(code, lambda text: text.replace(b"torch.conv2d", b"ops.evil.run  "), ".py"))


def rewritten(archive: bytes, change: Callable[[bytes], bytes], ending: str) -> bytes:
    """The archive with those members changed that have such an ending."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(result, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            new.writestr(info.filename, change(content) if info.filename.endswith(ending) else content)
    return result.getvalue()


# from file to checkpoint, through the jail


def in_jail(archive: bytes) -> Checkpoint:
    return read_torchscript(bytearray(archive), "t.pt", "abc")


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    network = small_resnet()
    network.bn1.num_batches_tracked.fill_(7)  # type: ignore[union-attr]
    with pytest.warns(DeprecationWarning):
        return in_jail(saved(network.half(), "scripted"))


def test_a_checkpoint_has_program_weights_and_counters(checkpoint: Checkpoint) -> None:
    network = small_resnet().half().float()
    state = network.state_dict()
    assert (checkpoint.file_name, checkpoint.sha256, checkpoint.format) == ("t.pt", "abc", "TorchScript archive")
    assert checkpoint.warnings == ()
    assert checkpoint.batches_tracked["bn1"] == 7
    assert checkpoint.tensors.keys() == {key for key in state if not key.endswith("num_batches_tracked")}
    assert all(torch.equal(tensor, state[key]) for key, tensor in checkpoint.tensors.items())
    assert checkpoint.program is not None
    assert checkpoint.program.title == "TorchScript program of 30 operations"
    assert checkpoint.program.input_shape == (None, 3, None, None)
    assert_same(checkpoint.program.network, network)


class WritesWhenLoaded(nn.Module):
    """Code that runs while the archive is loaded."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        torch.save(torch.ones(1), state[0])


class LoopsWhenLoaded(WritesWhenLoaded):
    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        count = 0
        while count >= 0:
            count = (count + 1) % 7


class Holding(Features):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.stem(x)))


def test_code_that_runs_at_loading_can_write_nothing(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    archive = saved(Holding(WritesWhenLoaded(str(canary))), "scripted")
    with pytest.raises(
        InputError, match=r"^'t\.pt' uses the operator aten::save, which a teacher may not\.\nWhere the"
    ):
        in_jail(archive)
    assert not canary.exists()
    torch.jit.load(io.BytesIO(archive))
    assert canary.exists()  # the positive control: outside of the jail it writes


def test_code_that_never_ends_at_loading_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchscript, "CPU_SECONDS", 1)
    archive = saved(Holding(LoopsWhenLoaded("")), "scripted")
    with pytest.raises(UnsafeInputError, match=r"^Reading 't\.pt' takes more than 1 seconds of computing\.\n"):
        in_jail(archive)


class TouchesTheCanary:
    """Pickles as a call that writes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("member", ["data.pkl", "constants.pkl"])
def test_a_pickle_in_place_of_the_archives_own_is_not_run(member: str, tmp_path: Path) -> None:
    # In this process, where it could: TorchScript's unpickler knows no functions.
    canary = tmp_path / "canary"
    evil = pickle.dumps(TouchesTheCanary(canary), 2)
    with pytest.raises(Refused, match=r"^cannot be loaded as TorchScript: "):
        answered(rewritten(saved(trained(Straight), "scripted"), lambda _: evil, member))
    assert not canary.exists()
    pickle.loads(evil)
    assert canary.exists()


def no_answer(data: bytearray) -> bytearray:
    return bytearray(b"{}")


def graph_with(operation: Operation) -> Callable[[bytearray], bytearray]:
    graph = ProgramGraph("images", (operation,), operation.name)
    return lambda _: bytearray(b"".join(pack(Answer(graph, {"w": torch.ones(1)}, training=False))))


FORGERIES: dict[str, tuple[Callable[[bytearray], bytearray], str]] = {
    "nothing": (no_answer, "gives an answer that cannot be understood."),
    "no tensors": (lambda data: data[:-1], "gives an answer that cannot be understood."),
    "no graph": (lambda data: data.replace(b'"program"', b'"progrom"'), "gives an answer that cannot be understood."),
    "argument of another kind": (
        lambda data: data.replace(b'{\\"tensor\\":', b'{\\"lambda\\":'),
        "gives an answer that cannot be understood.",
    ),
    "an operator that is not allowed": (
        graph_with(Operation("v0", "aten.from_file.default", ("/etc/passwd",))),
        "uses the operator aten.from_file.default, which a teacher may not.",
    ),
    "no operator at all": (
        graph_with(Operation("v0", "__import__('os')", ())),
        "uses the operator __import__('os'), which a teacher may not.",
    ),
    "a value that is not there": (
        graph_with(Operation("v0", "aten.relu.default", (ValueRef("v7"),))),
        "refers to 'v7', which it does not have.",
    ),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_an_answer_that_an_archive_has_made_up_is_refused(forgery: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forge, sentence = FORGERIES[forgery]
    honest = bytearray(b"".join(read(io.BytesIO(saved(trained(Straight), "scripted")))))
    monkeypatch.setattr(torchscript, "run_jailed", lambda *_, **__: Jailed(forge(honest), ()))
    with pytest.raises(InputError) as refused:
        in_jail(b"")
    assert refused.value.message == f"'t.pt' {sentence}"


def test_a_gap_of_the_jail_and_a_trace_in_training_mode_become_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    archive = saved(trained(WithDropout).train(), "traced")
    content = bytearray(b"".join(read(io.BytesIO(archive))))
    monkeypatch.setattr(torchscript, "run_jailed", lambda *_, **__: Jailed(content, ("A gap.",)))
    gap, training = in_jail(b"").warnings
    assert gap == "A gap."
    assert training.startswith("'t.pt' was traced in training mode; it is used as in evaluation, with the running ")


def test_the_stated_limits_are_those_that_the_jail_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[dict[str, Any]] = []

    def refuse(*_: object, **options: Any) -> Jailed:
        limits.append(options)
        raise InputError("refused")

    monkeypatch.setattr(torchscript, "run_jailed", refuse)
    for size in (0, 50_000_000):
        with pytest.raises(InputError):
            in_jail(bytes(size))
    # 4 x the file + 1 GiB; 5 s and one more for each 20 MB
    assert [limit["memory_bytes"] for limit in limits] == [2**30, 200_000_000 + 2**30]
    assert [limit["cpu_seconds"] for limit in limits] == [5, 7]


# images that the network cannot take


class FlattensOneImage(Features):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stem(x).mean((2, 3)).reshape(1, self.channels))  # type: ignore[no-any-return]


class MakesTooMuch(Features):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x.repeat(1, 1, 10_000, 10_000)))


def test_a_network_for_one_image_is_refused_before_it_is_run() -> None:
    network = rebuilt(saved(trained(FlattensOneImage), "scripted"))
    with pytest.raises(InputError, match=r"^'t\.pt' cannot be computed at 'v\d+': "):
        network(images(1))


def test_a_network_that_would_fill_the_memory_is_refused_before_it_is_run() -> None:
    network = rebuilt(saved(trained(MakesTooMuch), "scripted"))
    with pytest.raises(InputError, match=r"^'t\.pt' cannot be computed at 'v0': it would make "):
        network(images(1))
