"""rnn-bridge, the command line: stdout is the result, stderr is talk, the exit code says which of five things happened.

0 ok, 1 mismatch, 2 usage, 3 refused, 4 bad input, 5 missing extra. `--json` prints one document that its schema in
schemas/ accepts, on failure too.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NoReturn

import typer

from bridge.errors import BridgeError

if TYPE_CHECKING:
    from bridge.verification.report import Report

# rich would double the time of --help; the commands themselves use it for tables and progress.
app = typer.Typer(
    name="rnn-bridge",
    help="Move trained recurrent networks between frameworks through ONNX, proven in onnxruntime.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

TyperUsageError: Final[type[Exception]] = typer.BadParameter.__mro__[1]
"""typer's own usage error: the base of the one that it exports."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where onnxruntime runs.")]


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help=".onnx .pt .pth .safetensors .npz .keras .h5, or file::prefix")],
    target: Annotated[Path, typer.Argument(help=".onnx, .npz, .safetensors, .pt, .keras, or a folder for flax-code")],
    to: Annotated[
        str, typer.Option(help="Layout or framework of a weights file, such as flax.nnx, or flax-code.")
    ] = "",
    opset: Annotated[int, typer.Option(help="ONNX operator set, 17 to 22.")] = 20,
    states: Annotated[Literal["zero", "inputs"], typer.Option(help="Initial states.")] = "zero",
    lengths: Annotated[bool, typer.Option("--lengths", help="Take sequence lengths as an input.")] = False,
    form: Annotated[Literal["fused", "scan"], typer.Option(help="One operator per layer, or a Scan.")] = "fused",
    masks: Annotated[Literal["exact", "right"], typer.Option(help="How Keras masks are carried.")] = "exact",
    external_data: Annotated[bool | None, typer.Option(help="Weights beside the model; default past 1 GB.")] = None,
    static: Annotated[list[str] | None, typer.Option(help="For flax-code: fix an input, such as sr=16000.")] = None,
    shape: Annotated[list[str] | None, typer.Option(help="For flax-code: sizes of an input, as x=batch,576.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing target.")] = False,
    as_json: Json = False,
) -> None:
    """Convert a trained model or its weights into another file, or with --to flax-code into readable code."""
    from bridge.frameworks.files import convert_file, parse_shapes, parse_static

    written = convert_file(
        source, target, layout=to, overwrite=overwrite, external_data=external_data,
        static=parse_static(static or []), shapes=parse_shapes(shape or []),
        export={"opset": opset, "states": states, "lengths": lengths, "form": form, "masks": masks},
    )  # fmt: skip
    _print({"schema": "rnn-bridge/convert/1", **written.to_dict()}, str(written), as_json)


@app.command()
def verify(
    a: Annotated[str, typer.Argument(help="A model file.")],
    b: Annotated[str, typer.Argument(help="Another file, or a target: flax, flax.linen, torch, keras.")],
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Prove that two models agree, with numbers; exit 1 where they do not."""
    import bridge

    report: Report = bridge.verify(a, b, device=device)
    _print(report.to_dict(), str(report), as_json)
    if not report.passed:
        raise typer.Exit(1)


@app.command()
def inspect(
    source: Annotated[str, typer.Argument(help="A model file.")],
    as_json: Json = False,
) -> None:
    """List the recurrent layers of a file and what each target would or would not hold."""
    import bridge

    found = bridge.inspect(source)
    _print(found.to_dict(), str(found), as_json)


@app.command()
def explain(
    a: Annotated[str, typer.Argument(help="A layout such as torch.LSTM, or a model file.")],
    b: Annotated[str, typer.Argument(help="A layout or a framework such as flax.nnx.")],
    as_json: Json = False,
) -> None:
    """Say gate by gate from which array, rows and transposition to which array."""
    from bridge.verification.explanation import explain as explain_

    found = explain_(a, b)
    _print(found.to_dict(), str(found), as_json)


@app.command()
def layouts(as_json: Json = False) -> None:
    """List the layouts: where each framework keeps each gate."""
    from bridge.layout import describe, layouts

    rows = [describe(name) for name in layouts()]
    width = max(len(row["layout"]) for row in rows)
    text = "\n".join(f"{row['layout']:{width}}  {row['op']:4}  {row['source']}" for row in rows)
    _print({"schema": "rnn-bridge/layouts/1", "layouts": rows}, text, as_json)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show versions, the providers that really load, and the line that installs what is missing."""
    from bridge.doctor import examine

    found = examine()
    _print(found.to_dict(), str(found), as_json)


@app.command()
def demo(
    cache: Annotated[Path | None, typer.Option(help="Where fetched models are kept.")] = None,
    as_json: Json = False,
) -> None:
    """Fetch two real models, convert them every way and prove each conversion."""
    from bridge.demo import run_demo

    result = run_demo(cache, say=_say)
    _print(result.to_dict(), str(result), as_json)
    if not result.passed:
        raise typer.Exit(1)


def _say(line: str) -> None:
    # Talk goes to stderr, so that stdout stays the result; progress is for a person at a terminal.
    if sys.stderr.isatty():
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _print(document: dict[str, Any], text: str, as_json: bool) -> None:
    _write(json.dumps(document, indent=2, default=str) if as_json else text)


def _write(text: str) -> None:
    """Put the result on stdout; one that is closed early (`| head`) has what it wanted.

    Raises:
        BridgeError: stdout takes nothing, as a file on a full disk.
    """
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except OSError as error:
        # Python flushes once more at its end, and would say so there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise BridgeError("the result cannot be written", where="stdout", got=error.strerror,
                              do="make room, or send it elsewhere") from error  # fmt: skip


def error_document(error: BridgeError) -> dict[str, Any]:
    """What --json prints on failure: the document of schemas/error.schema.json."""
    details = {"where": error.where, "got": error.got, "expected": error.expected, "do": error.do}
    return {
        "schema": "rnn-bridge/error/1",
        "error": type(error).__name__,
        "message": error.what,
        "exit_code": error.exit_code,
        **{name: None if value in (None, "") else str(value) for name, value in details.items()},
    }


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    as_json = "--json" in sys.argv[1:]
    try:
        code = app(standalone_mode=False)
    except BridgeError as error:
        if as_json:
            _write(json.dumps(error_document(error), indent=2))
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.exit(error.exit_code)
    except TyperUsageError as error:
        _usage_error(error, as_json)
    sys.exit(code if isinstance(code, int) else 0)


def _usage_error(error: Exception, as_json: bool) -> NoReturn:
    from bridge.errors import UsageError

    message = str(getattr(error, "message", "")) or str(error)
    if message:
        usage = UsageError(message, where="rnn-bridge", do="rnn-bridge --help lists commands and options")
        if as_json:
            _write(json.dumps(error_document(usage), indent=2))
        sys.stderr.write(f"UsageError: {usage}\n")
    sys.exit(2)
