"""The ``vitrael`` command: a literal table of subcommands, each loaded only when it is typed.

The table carries the one-line helps, so that ``vitrael --help`` imports nothing but click. The code
behind a name is found by the entry points (group ``vitrael.commands``) of this distribution alone:
another installed package can add no command.

A command returns its exit code, or None for 0. What goes wrong is told in one sentence on stderr;
with ``--json`` also as ``{"error": {...}}`` on stdout, without the parts that have nothing to say.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

import click

from vitrael.core.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    ConfigError,
    StorageError,
    UsageError,
    VitraelError,
)

ENTRY_POINTS = "vitrael.commands"

COMMANDS: dict[str, dict[str, str]] = {
    "Everybody": {
        "demo": "Run a whole study on this machine: three sites, one signed release.",
        "doctor": "Check machine, network, certificates and consents; say what to do.",
        "audit": "Check journals, one against the other.",
        "audit-folder": "Say what synthetic images give away of a folder of real ones.",
        "support-bundle": "Collect what support needs, without patient data.",
        "phantoms": "Write made-up patients with a known truth, as a hospital's files.",
    },
    "Coordinator": {
        "server": "Invite and approve sites, run the coordinator, see how it goes.",
        "study": "Check, offer, start and stop studies.",
        "release": "Recall releases.",
    },
    "Hospital site": {
        "site": "Take scans in, consent to studies, run the steward, see all that leaves.",
    },
    "Researcher": {
        "pull": "Download a release and verify it.",
        "verify": "Verify a release against the keys you trust.",
        "model": "Train a model on local files, draw from it, score and upsample scans.",
    },
}
"""Reader -> command -> one line of help."""

EXTRAS = {
    "PIL": "site",
    "alembic": "site",
    "av": "site",
    "einops": "site",
    "flwr": "site",
    "jinja2": "site",
    "monai": "site",
    "opacus": "site",
    "pandas": "site",
    "prometheus_client": "site",
    "psutil": "site",
    "pydicom": "site",
    "scipy": "site",
    "sqlalchemy": "site",
    "tomli_w": "site",
    "torch": "site",
    "dcm2niix": "dcm2niix",
    "fastapi": "server",
    "mlflow": "server",
    "uvicorn": "server",
}
"""Top-level module -> the extra of this distribution that installs it."""

INSTALL = (
    "run pip install -c deploy/constraints.txt '.[{extra}]' in the checkout that vitrael was "
    "installed from, or pip install 'FILE.whl[{extra}]' with the wheel"
)
"""How an extra is installed; no public index is asked for the name vitrael."""


@dataclass(slots=True)
class Invocation:
    """What the root options ask of the process boundary."""

    debug: bool = False


class CommandTable(click.Group):
    """A group whose help comes from ``COMMANDS`` and whose commands load by entry point."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table; ``ctx`` is not used."""
        del ctx
        return [name for commands in COMMANDS.values() for name in commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the loaded command, or None for a name outside the table."""
        return load_command(cmd_name) if cmd_name in self.list_commands(ctx) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table, a section for each reader, without loading a command."""
        width = max(map(len, self.list_commands(ctx)))
        for reader, commands in COMMANDS.items():
            with formatter.section(reader):
                formatter.write_dl([(name.ljust(width), text) for name, text in commands.items()])


def load_command(name: str) -> click.Command:
    """Return the click command behind a name of the table.

    Raises ConfigError when this distribution is not installed or lacks the entry point.
    """
    try:
        installed = metadata.distribution("vitrael").entry_points
        entry = next(iter(installed.select(group=ENTRY_POINTS, name=name)))
    except (metadata.PackageNotFoundError, StopIteration) as error:
        raise ConfigError(
            f"the command {name} is not installed",
            why="this installation of vitrael does not hold it",
            fix="install vitrael again with pip",
        ) from error
    command = entry.load()
    if not isinstance(command, click.Command):
        msg = f"the entry point of {name} is no click command"
        raise TypeError(msg)
    return command


@click.command(
    cls=CommandTable,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Examples: 'vitrael demo', 'vitrael study check deploy/studies/brain-demo.toml', "
    "'vitrael pull brain-demo@1 --from FOLDER --trust FILE', 'vitrael verify DIR --trust FILE'. "
    "'vitrael COMMAND --help' tells more.",
)
@click.option(
    "--debug", is_flag=True, envvar="VITRAEL_DEBUG", help="Show the traceback of a failure."
)
@click.version_option(package_name="vitrael", message="vitrael %(version)s")
@click.pass_context
def vitrael(ctx: click.Context, *, debug: bool) -> None:
    """Turn the private scans of several hospitals into one synthetic set that carries its proof."""
    ctx.ensure_object(Invocation).debug = debug


def main() -> None:
    """Run the command line and end the process with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; nothing but SystemExit comes through."""
    invocation = Invocation()
    try:
        outcome = vitrael.main(
            list(arguments), prog_name="vitrael", standalone_mode=False, obj=invocation
        )
    except click.Abort as abort:
        # At a prompt click raises Abort "from None": then the context alone tells Ctrl-C from "no".
        interrupted = isinstance(abort.__cause__ or abort.__context__, KeyboardInterrupt)
        told = _explain_abort(abort, interrupted=interrupted)
        click.echo(told.sentence(), err=True)
        code = EXIT_INTERRUPTED if interrupted else VitraelError.exit_code
        return _as_json(told, arguments, exit_code=code)
    except click.ClickException as error:
        error.show()
        usage = UsageError(error.format_message())
        return _as_json(usage, arguments, exit_code=error.exit_code)
    except BrokenPipeError:
        return VitraelError.exit_code
    except Exception as error:  # noqa: BLE001 - the process boundary
        if invocation.debug:
            traceback.print_exception(error)
        told = explain(error)
        click.echo(f"Error: {told.sentence()}", err=True)
        return _as_json(told, arguments, exit_code=told.exit_code)
    return outcome if isinstance(outcome, int) else EXIT_OK


def _explain_abort(abort: click.Abort, *, interrupted: bool) -> VitraelError:
    """Return what to say of a question that was not answered with yes."""
    if interrupted:
        return VitraelError("Interrupted")
    if isinstance(abort.__cause__ or abort.__context__, EOFError):
        return VitraelError(
            "Nothing was done",
            why="it asked a question, and there is no terminal to answer it",
            fix="run it in a terminal, or give --yes",
        )
    return VitraelError("Nothing was done")


def explain(error: Exception) -> VitraelError:
    """Return the error to show: itself, a missing extra, the system's refusal, or a defect.

    The text of a foreign exception is left out, because it may quote a file name or a value.
    """
    if isinstance(error, VitraelError):
        return error
    if isinstance(error, ImportError) and (error.name or "").split(".")[0] in EXTRAS:
        module = str(error.name).split(".")[0]
        extra = EXTRAS[module]
        return ConfigError(
            f"{module} is not installed",
            why=f"this command needs the extra '{extra}'",
            fix=INSTALL.format(extra=extra),
        )
    if isinstance(error, OSError) and error.strerror:
        return StorageError(
            "the operating system refused",
            why=error.strerror,
            fix="free space or permissions, then run the same command again",
        )
    return VitraelError(
        "vitrael failed unexpectedly",
        why=type(error).__name__,
        fix="run 'vitrael --debug ...' to see where, and report it",
    )


def _as_json(error: VitraelError, arguments: Sequence[str], *, exit_code: int) -> int:
    if "--json" in arguments:
        parts = {"what": error.what, "why": error.why, "fix": error.fix}
        said = {name: part for name, part in parts.items() if part}
        fields = {"kind": type(error).__name__, **said, "exit_code": exit_code}
        click.echo(json.dumps({**error.finished, "error": fields}))
    return exit_code
