"""Commands that measure: verify, eval NAME for every benchmark, eval list."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from echat.cli.options import DEFAULT_DEVICE, DEFAULT_MODEL, Device, EchatCommand, Json, Model

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from echat.eval.benchmark import Benchmark

Figures = Annotated[
    Path | None, typer.Option("--output", "-o", help="Also write the figures as JSON to this file.")
]
Markdown = Annotated[Path | None, typer.Option(help="Also write the table to this file.")]


class BenchmarkGroup(TyperGroup):
    """`echat eval`: one command per benchmark, built from its class when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        from echat.eval.benchmark import shipped_benchmarks

        return [*shipped_benchmarks(), *super().list_commands(ctx)]

    def get_command(self, ctx: Any, name: str) -> Any:
        from echat.eval.benchmark import find_benchmark, shipped_benchmarks

        if name in self.commands:
            return self.commands[name]
        if name in shipped_benchmarks() or ":" in name:
            return benchmark_command(name, find_benchmark(name))
        return None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Names with one sentence each, without importing any benchmark."""
        from echat.eval.benchmark import shipped_benchmarks

        own = {name: command.get_short_help_str() for name, command in self.commands.items()}
        with formatter.section("Commands"):
            formatter.write_dl([*shipped_benchmarks().items(), *own.items()])


def add_to(app: typer.Typer) -> None:
    app.command()(verify)
    group = typer.Typer(
        cls=BenchmarkGroup,
        no_args_is_help=True,
        help="Measure a model: a benchmark by name, or one of your own as module:Class.",
    )
    group.command("list")(list_benchmarks)
    app.add_typer(group, name="eval")


def verify(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Folders of golden numbers (default: the bundled ones).")
    ] = None,
    device: Device = DEFAULT_DEVICE,
    precision: Annotated[str, typer.Option(help="Of the networks: fp32 or bf16.")] = "fp32",
    converted: Annotated[
        bool, typer.Option("--converted", help="First convert the weights, then check the model folder.")
    ] = False,
    json: Json = False,
) -> None:
    """Does this machine reproduce golden numbers, on this device and in this precision?

    The first line says where; then one line per array. Exit code 1 when one differs by more than its
    tolerance.
    """
    from dataclasses import asdict

    from echat.cli import display
    from echat.verify.comparison import Backend
    from echat.verify.verification import bundled_folders, verify_folder

    backend = Backend.of(device, precision)
    passed = failed = 0
    for number, folder in enumerate(folders or bundled_folders()):
        for check in verify_folder(folder, backend, converted):
            if not number and not passed + failed and not json:
                print(backend)
            if json:
                display.json_line({"where": str(backend), **asdict(check), "ok": check.ok})
            else:
                print(check, flush=True)
            passed, failed = passed + check.ok, failed + (not check.ok)
    if not json:
        print(f"{passed} passed, {failed} failed")
    if failed:
        raise typer.Exit(1)


def list_benchmarks() -> None:
    """The benchmarks of this installation, one a line."""
    from echat.eval.benchmark import shipped_benchmarks

    for name, sentence in shipped_benchmarks().items():
        print(f"{name}: {sentence}")


def benchmark_command(name: str, benchmark: type[Benchmark]) -> Any:
    """The command of a benchmark: the fields of its class as options, and those that all benchmarks share."""

    def evaluate(
        *,
        model: Model = DEFAULT_MODEL,
        device: Device = DEFAULT_DEVICE,
        json: Json = False,
        output: Figures = None,
        markdown: Markdown = None,
        **options: Any,
    ) -> None:
        from echat.cli import display
        from echat.cli.engines import open_engine
        from echat.config import validate
        from echat.eval.benchmark import run
        from echat.eval.report import write_json, write_text

        given = {option: value for option, value in options.items() if value is not None}
        job = validate(benchmark, given, f"benchmark {name}")
        job.check()
        report = run(job, open_engine(model, device))
        if output is not None:
            write_json(output, report.as_dict())
        if markdown is not None:
            write_text(markdown, report.as_markdown())
        if json:
            display.json_line(report.as_dict())
        else:
            print(report)

    shared = inspect.signature(evaluate, eval_str=True).parameters.values()
    own = [_option(field_name, field) for field_name, field in benchmark.model_fields.items()]
    parameters = [*own, *(one for one in shared if one.kind is not inspect.Parameter.VAR_KEYWORD)]
    evaluate.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    evaluate.__annotations__ = {one.name: one.annotation for one in parameters}
    evaluate.__doc__ = benchmark.__doc__
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name, cls=EchatCommand)(evaluate)
    return typer.main.get_command(app)


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    """A field of a benchmark as an option: its name, type, default, least value and description."""
    least = next((bound.ge for bound in field.metadata if hasattr(bound, "ge")), None)
    option = typer.Option("--" + name.replace("_", "-"), help=field.description, min=least)
    default = inspect.Parameter.empty if field.is_required() else field.get_default(call_default_factory=True)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[field.annotation, option]
    )
