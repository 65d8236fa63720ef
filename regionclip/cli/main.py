"""The commands. Imports that take seconds are deferred until a command runs."""

from __future__ import annotations

from importlib import import_module

import typer

from regionclip.cli import concepts, config, delegated, demo, detect, download, export, models, pack, serve
from regionclip.method import methods

app = typer.Typer(
    name="regionclip",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Find objects in images by the words you type. Shell completion: regionclip --install-completion",
)
app.command("detect", no_args_is_help=True)(detect.detect)
app.command("features", context_settings=delegated.FORWARDED)(delegated.features)
app.command("concepts", no_args_is_help=True)(concepts.concepts)
app.command("eval", context_settings=delegated.FORWARDED)(delegated.evaluate)
app.command("train", context_settings=delegated.FORWARDED)(delegated.train)
app.command("pack", no_args_is_help=True)(pack.pack)
app.command("demo")(demo.demo)
app.command("serve")(serve.serve)
app.command("export", no_args_is_help=True)(export.export)
app.command("download")(download.download)
app.command("models")(models.models)
app.command("config")(config.config)
app.command("doctor")(delegated.doctor)
for method in methods():
    if method.commands:
        app.add_typer(import_module(method.commands).app, name=method.name.replace("_", "-"))


@app.callback(invoke_without_command=True)
def version(show: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    """Find objects in images by the words you type."""
    if show:
        import regionclip

        print(f"regionclip {regionclip.__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line."""
    app(prog_name="regionclip")
