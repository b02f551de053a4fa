"""The command line: `kedit --help`, or `python -m kedit_lib --help`. Exit code: 0 all well, 1 it could not be done (one
line says why), 2 the arguments are wrong, 130 stopped by Ctrl-C. Commands import what they need, so --help is fast."""

import os
import signal
import sys
from typing import Annotated

import typer
from typer import Option

from . import model_commands
from .errors import program

STOPPED = 130  # the exit code that typer makes of Ctrl-C
EXAMPLES = {
    "check-model": "Qwen/Qwen2.5-0.5B --profile gpu",
    "edit": 'lab --prompt "The profession of {} is" --subject "Kies Shurn" --to doctor --save edited',
    "stream": "lab --edits lab --limit 50 --method rome --out results/mine",
    "evaluate": "edited            (a folder that edit or stream saved)",
}
app = typer.Typer(
    help="Edit facts in a language model and see what else changes.",
    epilog="Each command has its own --help. Exit code: 0 all well, 1 it could not be done, 2 wrong arguments.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for name, example in EXAMPLES.items():
    command = getattr(model_commands, name.replace("-", "_"))
    app.command(name, epilog=f"\b\nexample:\n  kedit {name} {example}")(command)

# ---- the report ------------------------------------------------------------------------------------------------------

ProfileName = Annotated[str, Option("--profile", help="smoke, lab, gpu, or a .yaml file")]
Model = Annotated[str | None, Option(help="another model for this run: lab, lab-small, a hub id or a local folder")]
Data = Annotated[str | None, Option(help="other edits for this run: a file, a folder or a hub name of an edit set")]
Texts = Annotated[str | None, Option(help="other plain text for second moments: a file or a hub name")]
LiveOrders = Annotated[str | None, Option("--orders", help="edit orders to execute now: all, or numbers such as 0,2")]
Fields = Annotated[list[str] | None, Option("-p", metavar="NAME=VALUE", help="change a field of the profile")]


@app.command()
def reproduce(
    profile: ProfileName = "lab",
    model: Model = None,
    data: Data = None,
    texts: Texts = None,
    orders: LiveOrders = None,
    fields: Fields = None,
    only: Annotated[str | None, Option(metavar="NB", help="only notebooks whose names begin so: 03")] = None,
    force: Annotated[bool, Option("--force", help="run them even if they are current")] = False,
) -> int:
    """Execute the notebooks that are stale: source, parameters, library or data changed since their last run.

    The lab profile writes notebooks/executed and figures, every other run results/executed-<run> and
    results/figures-<run>. A notebook that failed is kept in results/failed.
    """
    from .report import reproduce

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a stopped `make` stops the kernels too
    return reproduce.reproduce_run(profile, model, data, texts, orders, fields or [], only=only, force=force)


@app.command()
def report(
    profile: ProfileName = "lab",
    model: Model = None,
    data: Data = None,
    texts: Texts = None,
    orders: LiveOrders = None,
    fields: Fields = None,
) -> None:
    """Write the executed notebooks as web pages: report/index.html and a page for each."""
    from .report import reproduce, site

    run = reproduce.make_run(reproduce.REPOSITORY, profile, model, data, texts, orders, fields or [])
    print(site.write_report(run.executed, run.figures, reproduce.REPOSITORY / "report"))


@app.command()
def sweep(
    profile: ProfileName = "lab",
    orders: Annotated[str, Option(help="edit orders, such as 1,2")] = "1,2",
    streams: Annotated[str, Option(help="names, or a group of params/streams.yaml, such as settings")] = "main",
    plan: Annotated[bool, Option("--plan", help="only say what would run")] = False,
    scheduler: Annotated[str, Option(envvar="SCHEDULER", help="a Dask scheduler, such as tcp://host:8786")] = "",
) -> None:
    """Run streams of a profile into figures/data."""
    from .report import sweep

    os.environ["SCHEDULER"] = scheduler
    sweep.run(profile, orders, streams, plan)


@app.command()
def claims(
    accept: Annotated[bool, Option("--accept", help="make the last run's values the accepted ones")] = False,
) -> int:
    """Compare the last run's claims with the accepted ones. Exit code 1: one left its band."""
    from .report import claims

    return claims.accept_or_compare(accept)


# ---- models ----------------------------------------------------------------------------------------------------------


@app.command("fetch-model")
def fetch_model() -> None:
    """Fetch the pretrained model smollm2. It is there offline from then on."""
    from .models.loading import SMOLLM2, local_folder

    print(f"{SMOLLM2}: {local_folder(SMOLLM2)}")


@program
def main(argv: list[str] | None = None) -> int:
    try:
        code = typer.main.get_command(app).main(argv, prog_name="kedit", standalone_mode=False)
    except typer.TyperException as error:
        print(f"kedit: {' '.join(error.format_message().split()).rstrip('.')}; see --help", file=sys.stderr)
        return 2
    if code == STOPPED:
        raise KeyboardInterrupt
    return code or 0


if __name__ == "__main__":
    sys.exit(main())
