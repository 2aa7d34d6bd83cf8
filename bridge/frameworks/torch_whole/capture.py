"""One run of torch's exporter: quiet, with the module as it was afterwards, and with one error where it fails."""

from __future__ import annotations

import functools
import linecache
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from bridge.errors import BridgeError, Unsupported, UsageError
from bridge.frameworks.torch_whole.inputs import Args
from bridge.frameworks.torch_whole.loops import INSTEAD, LIBRARY, OWN, Loops, watched
from bridge.frameworks.torch_whole.ops import translations
from bridge.frameworks.torch_whole.stubs import Trace, stubbed

if TYPE_CHECKING:
    import onnx_ir as ir

FAILURES: Final = (TorchDynamoException, RuntimeError, ValueError, TypeError, LookupError, AttributeError,
                   ArithmeticError, AssertionError, SyntaxError)  # fmt: skip
"""What tracing somebody's forward may raise; the rest is no verdict about the model."""

FIX: Final = (
    "make forward run with any size of axes 0 and 1, or fix what must keep the example's size: "
    "dynamic={name: {0: 'batch'}} leaves only axis 0 symbolic"
)
"""What to do where no line is known."""

MODULE: Final = str(nn.modules.module.__file__)
"""Where torch calls a forward and its hooks."""

OTHERWISE: Final = "write it with other operators, or export the part of the model around it"
"""What to do about an operator that no line of the user's stands for."""

BRANCHES: Final = (
    "compute both ways and choose with torch.where, or write them as functions for torch.cond; take sizes from shapes"
)
"""What to do about control flow that hangs on data."""

OLDEST: Final = 18
"""The oldest operator set that torch's exporter writes."""

LONGEST_MESSAGE: Final = 1200
"""Characters of the exporter's message that an error keeps."""


class HangsOnData(RuntimeError):
    """A GuardOnDataDependentSymNode, its cause, on the way out of forward.

    Torch passes it on as it is. For its own it prints the graph traced so far to stderr.
    """


def capture(module: nn.Module, args: Args, shapes: Any, trace: Trace, loops: Loops) -> Any:
    """The ExportedProgram of `module` with stubs for its recurrent layers and packing.

    Raises:
        Unsupported: Python code that takes a symbolic size for a number, which holds for the example's size only.
    """
    from torch.fx.experimental import _config

    with ExitStack() as stack:
        stack.enter_context(_unchanged(module))
        stack.enter_context(_quiet())
        stack.enter_context(stubbed(trace))
        stack.enter_context(_config.patch(backed_size_oblivious=True))  # as torch.onnx does: 1 is a size like any other
        stack.enter_context(torch._dynamo.config.patch(allow_rnn=True))  # noqa: SLF001 (branches of torch.cond)
        stack.enter_context(torch.no_grad())
        stack.enter_context(watched(module, loops))
        vars(module)["forward"] = _leaving(module.forward)  # `_unchanged` takes it away
        try:
            program = torch.export.export(module, args[0], args[1], dynamic_shapes=shapes, strict=False)
        except (HangsOnData, GuardOnDataDependentSymNode):
            if trace.full or not trace.packed:
                raise
            # The model compares the length of the longest sequence with something: let it be the time axis, checked
            # when the model runs.
            trace.full = True
            trace.packed.clear()
            loops.sampled.clear()
            program = torch.export.export(module, args[0], args[1], dynamic_shapes=shapes, strict=False)
    if loops.fixed:
        raise Unsupported(
            "the model takes the size of an axis for a number, so the graph would hold for the example's size only",
            where=type(module).__name__, got="; ".join(dict.fromkeys(loops.fixed)), do=INSTEAD,
        )  # fmt: skip
    return program


def _leaving(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward`, from which a branch on data comes as HangsOnData."""

    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return forward(*args, **kwargs)
        except GuardOnDataDependentSymNode as error:
            raise HangsOnData from error

    return call


def explained(error: BaseException, module: nn.Module, args: Args) -> BridgeError:
    """`error` as one of bridge's: its own where one is behind it, else where torch failed and why."""
    for cause in _chain(error):
        if isinstance(cause, BridgeError):
            return cause
    own = _own_failure(module, args)
    if own is not None:
        path, line = _place(own, module)
        return UsageError("forward fails on the example, without any export", where=_named(module, path),
                          got="; ".join(filter(None, (_message(own), line))),
                          do=f"pass an example on which the module runs; this one is {_description(args)}"
                          )  # fmt: skip
    for cause in _chain(error):
        if isinstance(cause, GuardOnDataDependentSymNode):
            path, line = _place(cause, module)
            return Unsupported("forward asks for the value of a tensor, on which a branch, a loop or a size hangs",
                               where=_named(module, path), got=line or str(cause.cond), do=BRANCHES)  # fmt: skip
    path, line = _place(error, module)
    return Unsupported("torch cannot export this module", where=_named(module, path), got=_message(error),
                       do=f"change {line}" if line else FIX)  # fmt: skip


def _own_failure(module: nn.Module, args: Args) -> Exception | None:
    """What the module's own forward raises on the example, if anything; module and example stay as they are."""

    def copied(value: Any) -> Any:
        return value.clone() if isinstance(value, torch.Tensor) else value

    buffers = {name: value.clone() for name, value in module.named_buffers()}
    positional, keywords = pytree.tree_map(copied, args)
    with _unchanged(module), _quiet(), torch.no_grad(), torch.random.fork_rng():
        try:
            torch.func.functional_call(module, buffers, positional, keywords)
        except FAILURES as error:
            return error
    return None


def _description(args: Args) -> str:
    """The example in words: dtype and shape of its tensors, everything else as it is written."""

    def described(value: Any) -> str:
        if isinstance(value, torch.Tensor):
            return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        return repr(value)[:80]

    keywords = [f"{name}={described(value)}" for name, value in args[1].items()]
    return ", ".join([*map(described, args[0]), *keywords])


def translate(module: nn.Module, program: Any, opset: int) -> ir.Model:
    """The program in ONNX, with one stub node for each of its stubs, neither folded nor checked.

    Raises:
        Unsupported: an operator that torch's exporter does not have, with the module path and the line.
    """
    from torch.onnx.errors import OnnxExporterError

    with _quiet():
        try:
            made: Any = torch.onnx.export(program, (), dynamo=True, custom_translation_table=translations(),
                                     opset_version=max(OLDEST, opset), optimize=False, verbose=False)  # fmt: skip
        except OnnxExporterError as error:
            raise _untranslated(error, module) from error
    return made.model  # type: ignore[no-any-return]


def _untranslated(error: BaseException, module: nn.Module) -> BridgeError:
    path, line = "", ""
    node = _failed_node(error)
    if node is not None:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path = str(stack[-1][0]) if stack else ""
        frames = re.findall(r'File "(.+)", line (\d+)', str(node.meta.get("stack_trace") or ""))
        for file, number in [frame for frame in frames if not frame[0].startswith((LIBRARY, OWN))][-1:]:
            line = f"change {file}:{number}: {linecache.getline(file, int(number)).strip()}"
    root = _chain(error)[-1]
    return Unsupported("torch's exporter cannot write this module in ONNX", where=_named(module, path),
                       got=_message(root), do=line or OTHERWISE)  # fmt: skip


def _failed_node(error: BaseException) -> torch.fx.Node | None:
    """The node that the exporter was at, read off its frames: it names nodes of a copy of the program."""
    for cause in _chain(error):
        for frame, _ in _frames(cause):
            node = frame.f_locals.get("node")
            if isinstance(node, torch.fx.Node) and node.op == "call_function":
                return node
    return None


def _named(module: nn.Module, path: str) -> str:
    return f"{path} ({type(module.get_submodule(path)).__name__})" if path else type(module).__name__


def _message(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}".strip()
    return text if len(text) <= LONGEST_MESSAGE else text[:LONGEST_MESSAGE] + " …"


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in found:
        found.append(at)
        at = at.__cause__ or at.__context__
    return found


def _place(error: BaseException, module: nn.Module) -> tuple[str, str]:
    """The path of the deepest submodule in whose forward it happened, and "file:line: code" of the user's last line."""
    paths = {id(child): path for path, child in module.named_modules()}
    best: tuple[str, str] = ("", "")
    for frame, number in _frames(error):
        code = frame.f_code
        owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None  # `self`, whatever it is called
        if id(owner) in paths and code.co_name != "__call__" and isinstance(owner, nn.Module):
            file = code.co_filename
            if not file.startswith((LIBRARY, OWN)):
                best = paths[id(owner)], f"{file}:{number}: {linecache.getline(file, number).strip()}"
            elif file != MODULE:
                best = paths[id(owner)], best[1]
    return best


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    at: TracebackType | None = error.__traceback__
    while at is not None:
        yield at.tb_frame, at.tb_lineno
        at = at.tb_next


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Attributes, parameters, buffers, hooks, modes, lists and dicts of every submodule are put back."""
    kept = []
    for child in module.modules():
        inner = {name: value.copy() for name, value in vars(child).items() if isinstance(value, dict | list | set)}
        kept.append((child, dict(vars(child)), inner))
    try:
        yield
    finally:
        for child, attributes, inner in kept:
            vars(child).clear()
            vars(child).update(attributes)
            for name, value in inner.items():
                held = vars(child)[name]
                held.clear()
                held.extend(value) if isinstance(held, list) else held.update(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither torch's log nor its warnings: what they say of the model, bridge says in its own words."""
    names = ("torch", "torch.onnx", "torch.export", "torch._dynamo", "torch.fx", "onnxscript", "onnx_ir")
    logs = [logging.getLogger(name) for name in names]
    levels = [log.level for log in logs]
    try:
        for log in logs:
            log.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
