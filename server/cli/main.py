"""The entry point: every command with its name."""

import typer

from server.cli import (
    adapters,
    audit,
    chat,
    deletions,
    doctor,
    documents,
    fleet,
    keys,
    policies,
    prompts,
    questions,
    runs,
    tasks,
    trials,
    up,
    versions,
)
from server.cli.console import CommandGroup

app = typer.Typer(
    cls=CommandGroup,
    help="Everlearn: a model server that keeps learning from what it serves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(up.up)
app.command()(up.down)
app.command()(up.status)
app.command()(up.prepare)
app.command()(doctor.doctor)
app.command()(chat.chat)
app.command()(documents.ingest)
app.command()(documents.learn)
app.command("documents")(documents.show)
app.command()(runs.runs)
app.command()(adapters.promote)
app.command()(adapters.rollback)
app.command()(deletions.forget)
app.command("deletions")(deletions.show)
app.command()(audit.audit)
app.add_typer(versions.app, name="adapters")
app.add_typer(fleet.app, name="fleet")
app.add_typer(tasks.app, name="tasks")
app.add_typer(prompts.app, name="prompts")
app.add_typer(policies.app, name="policies")
app.add_typer(trials.app, name="trial")
app.add_typer(keys.app, name="key")
app.add_typer(questions.app, name="questions")

if __name__ == "__main__":
    app()
