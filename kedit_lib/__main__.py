"""The command line: `kedit --help`, or `python -m kedit_lib --help`. Exit code: 0 all well, 1 it could not be done (one
line says why), 2 the arguments are wrong, 130 stopped by Ctrl-C. Commands import what they need, so --help is fast."""

import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

import kedit_lib as kedit

from .errors import KeditError, program

CANARIES = 160  # facts that a guard may ask, four looks' worth
app = typer.Typer(
    help="Edit facts in a language model and see what else changes.",
    epilog="Each command has its own --help. Exit code: 0 all well, 1 it could not be done, 2 wrong arguments.",
    add_completion=False,
    rich_markup_mode=None,
)


def command(example: str):
    return app.command(epilog=f"\b\nexample:\n  kedit {example}")


# ---- models ----------------------------------------------------------------------------------------------------------

Model = Annotated[str, Argument(help="lab, lab-small, a folder with a model, or a hub id such as Qwen/Qwen2.5-0.5B")]
Dtype = Annotated[str | None, Option(help="float32, bfloat16, float16 or float64 (default: as it is stored)")]
Device = Annotated[str, Option(help="cpu, cuda, …, or the number of a GPU")]
Trust = Annotated[bool, Option("--trust-remote-code", help="run the code that the model brings; read it first")]
MethodName = Annotated[str, Option("--method", help="rome, r-rome, memit, pmet, alphaedit, ft-m, …")]
Texts = Annotated[str | None, Option(help="plain text for second moments: a file, a hub name, or self (model-written)")]
EDIT_SET = Option(help="lab, world, or a file, folder or hub name of edits: CounterFact, zsRE, yours")
Limit = Annotated[int | None, Option(min=1, help="at most this many (default: all; 100 of the lab's)")]
Chat = Annotated[bool, Option("--chat", help="prompts are questions to a chat model: apply its chat template")]
Seed = Annotated[int, Option(help="decides the sample and the order")]
Action = Literal["warn", "stop", "roll back", "batch"]
Guard = Annotated[Action | None, Option(help="what to do when unrelated known facts are lost")]
Save = Annotated[str | None, Option(metavar="FOLDER", help="save the edited model there, for transformers to load")]


@command("check-model Qwen/Qwen2.5-0.5B --profile gpu")
def check_model(
    model: Model,
    dtype: Dtype = None,
    device: Device = "cpu",
    trust_remote_code: Trust = False,
    edits: Annotated[str | None, Option(help="edits whose true objects are asked (default: common facts)")] = None,
    profile: Annotated[str | None, Option(help="the run that minutes are estimated for (default: lab or gpu)")] = None,
    dry: Annotated[bool, Option("--dry", help="write no results/models/<name>.yaml")] = False,
) -> None:
    """Check a model and propose its parameters. Tries one edit, takes it back, and proposes layers and λ."""
    loaded = kedit.load_model(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    asked = kedit.load_edits(edits, model=loaded) if edits else None
    table = kedit.check_model(loaded, asked, profile, write=not dry)
    width = max(map(len, table.index))
    for what, value in table.value.items():
        print(f"{what:{width}}  {value}")


@command('edit lab --prompt "The profession of {} is" --subject "Kies Shurn" --to doctor --save edited')
def edit(
    model: Model,
    prompt: Annotated[str, Option(help="the question, with {} where the subject goes, in quotes")],
    subject: Annotated[str, Option(help="who or what the fact is about")],
    to: Annotated[str, Option(help="the new object")],
    ask: Annotated[list[str] | None, Option(metavar="PROMPT", help="another prompt to show (may be repeated)")] = None,
    method: MethodName = "memit",
    chat: Chat = False,
    texts: Texts = None,
    save: Save = None,
    deltas: Annotated[str | None, Option(metavar="FOLDER", help="save the updates alone (kedit.load_deltas)")] = None,
    dtype: Dtype = None,
    device: Device = "cpu",
    trust_remote_code: Trust = False,
) -> None:
    """Make one edit, and show answers before and after."""
    loaded = kedit.load_model(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    make = partial(kedit.Edit.from_chat, loaded) if chat else kedit.Edit
    asked = make(prompt, subject, to, paraphrases=ask or [])
    editor = kedit.method_for(loaded, method)
    before = kedit.ask(loaded, asked)
    outcome = editor.apply(loaded, [asked], moments=_moments(loaded, editor, texts))
    for kind, row in kedit.ask_table(before, kedit.ask(loaded, asked)).iterrows():
        print(f"{kind}: {row.prompt}")
        for when, says in (("before", row["said before"]), ("after", row["says after"])):
            print(f"  {when:7} p(new) {row[f'p(new) {when}']:.4f}  {says}")
    if deltas:
        print(f"deltas: {outcome.save(deltas)}")
    if save:
        loaded.save_pretrained(save)
        print(f"edited model: {save}")


@command("stream lab --edits lab --limit 50 --method rome --out results/mine")
def stream(
    model: Model,
    edits: Annotated[str, EDIT_SET],
    limit: Limit = None,
    seed: Seed = 0,
    chat: Chat = False,
    method: MethodName = "memit",
    texts: Texts = None,
    batch: Annotated[int, Option(help="edits written at a time; 0: all at once")] = 1,
    every: Annotated[int, Option(help="edits between measurements")] = 25,
    out: Annotated[str | None, Option(metavar="FOLDER", help="keep rows and checkpoints; rerun to resume")] = None,
    guard: Guard = None,
    keep: Annotated[int, Option(min=0, help="begin the history with so many known facts that no edit touches")] = 0,
    save: Save = None,
    dtype: Dtype = None,
    device: Device = "cpu",
    trust_remote_code: Trust = False,
) -> None:
    """Make many edits, one on top of the other. Measures along the way."""
    from .data.config import results_folder
    from .data.edit import around_places
    from .editing import BASELINES
    from .evaluation.protocol import EditProbe
    from .models.deltas import record_of
    from .streams.facts import AUTO, LAB, facts_of, kept_facts

    loaded = kedit.load_model(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    editor = kedit.method_for(loaded, method)
    if save and editor.name in BASELINES:
        use = "in Python its edits are kept by history.save(path) and come back by method.recall(model, history)"
        raise KeditError(f"--save: {editor.name} writes no weights that a folder could hold; {use}")
    known, unknown = kedit.known_edits(loaded, kedit.load_edits(edits, loaded, limit, seed, chat=chat))
    if not known:
        raise KeditError(f"edits {edits!r}: the model knows none of the {unknown} facts; give others")
    print(f"{len(known)} edits; {unknown} left out, because the model does not know the fact")
    moments = _moments(loaded, editor, texts)
    source = facts_of(loaded, edits, LAB if edits == LAB else texts or AUTO, results_folder() / "known", chat)
    watch, kept, canaries = None, [], CANARIES if guard else 0
    if guard:
        strangers = source.strangers(known, canaries, seed)
        asked = [(subject.join(around_places(prompt)), answer) for prompt, subject, answer in strangers]
        watch = kedit.CollapseGuard(asked if len(asked) >= CANARIES / 4 else None, action=guard, seed=seed)
    if keep:
        kept = kept_facts(source, known, keep, canaries, seed)
        print(f"{len(kept)} facts kept")
    history = editor.new_history(loaded, moments, keep=kept) if keep else None
    looks = {"probes": [EditProbe(each=False, match="contains")], "checkpoint_every": every, "guard": watch}
    looks |= {"store": out or (Path(save) / "stream" if save else None), "progress": sys.stderr.isatty()}
    run = kedit.run_stream(loaded, known, editor, batch or len(known), moments=moments, history=history, **looks)
    table = run.checkpoints.query("metric != 'seconds'")
    table = table.pivot(index=["metric", "cohort"], columns="edits_done", values="value")
    print(table.round(3).to_string(na_rep=""))
    if watch:
        print(f"guard: {watch}")
    if save:
        loaded.load_snapshot(run.final_weights())
        loaded.applied = [record_of(editor.name, editor.hyperparameters, known[: len(run.edits)])]
        loaded.save_pretrained(save)
        print(f"edited model: {save}")


@command("evaluate edited            (a folder that edit or stream saved)")
def evaluate(
    model: Model,
    edits: Annotated[str | None, EDIT_SET] = None,
    limit: Limit = None,
    seed: Seed = 0,
    chat: Chat = False,
    out: Annotated[Path | None, Option(metavar="FILE", help="write every row there, as .csv")] = None,
    dtype: Dtype = None,
    device: Device = "cpu",
    trust_remote_code: Trust = False,
) -> None:
    """Measure how edits hold in a model: success, paraphrases, neighbors. Default: the edits recorded in its folder."""
    import pandas as pd

    from .data.atomic import replacing
    from .evaluation.protocol import EditProbe
    from .models.deltas import load_record

    loaded = kedit.load_model(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    asked = kedit.load_edits(edits, loaded, limit, seed, chat=chat) if edits else load_record(model)[:limit]
    table = pd.DataFrame(EditProbe(each=False, match="contains")(loaded, asked))
    if out:
        with replacing(out) as partial:
            table.to_csv(partial, index=False)
    print(f"{len(asked)} edits:")
    print(table.pivot(index="metric", columns="cohort", values="value").round(3).to_string(na_rep=""))


def _moments(model, method, texts: str | None):
    """C over --texts, the lab's own text, or what the model writes; kept in results/moments."""
    from .data.config import LAB_MODELS, results_folder
    from .lab.world import moment_texts
    from .streams.facts import AUTO, plain_texts

    if not method.needs_moments:
        return None
    lab = texts is None and model.name in LAB_MODELS
    corpus = moment_texts(model) if lab else plain_texts(model, texts or AUTO)
    cache = results_folder() / "moments"
    return kedit.SecondMoments.estimate(model, corpus, method.layers, cache=cache, progress=sys.stderr.isatty())


# ---- the report ------------------------------------------------------------------------------------------------------

ProfileName = Annotated[str, Option("--profile", help="smoke, lab, cpu, gpu, or a .yaml file")]
OtherModel = Annotated[str | None, Option("--model", help="another model: lab, lab-small, a hub id or a local folder")]
Data = Annotated[str | None, Option(help="other edits for this run: a file, a folder or a hub name of an edit set")]
OtherTexts = Annotated[str | None, Option("--texts", help="other plain text for second moments: a file or a hub name")]
LiveOrders = Annotated[str | None, Option("--orders", help="edit orders to execute now: all, or numbers such as 0,2")]
Fields = Annotated[list[str] | None, Option("-p", metavar="NAME=VALUE", help="change a field of the profile")]


@app.command()
def reproduce(
    profile: ProfileName = "lab",
    model: OtherModel = None,
    data: Data = None,
    texts: OtherTexts = None,
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
    model: OtherModel = None,
    data: Data = None,
    texts: OtherTexts = None,
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
    if code == 130:  # which typer makes of Ctrl-C
        raise KeyboardInterrupt
    return code or 0


if __name__ == "__main__":
    sys.exit(main())
