"""The library on the command line: `python -m kedit_lib --help`.

    python -m kedit_lib check-model lab
    python -m kedit_lib edit lab --prompt "The profession of {} is" --subject "Kies Shurn" --to doctor --save edited
    python -m kedit_lib stream lab --method memit --edits lab --limit 20
    python -m kedit_lib evaluate edited

Exit code: 0 all well, 1 it could not be done (one line says why), 2 the arguments are wrong.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .errors import KeditError, program


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m kedit_lib",
        description="Edit facts in a language model and see what else changes.",
        epilog="Each command has its own --help. Exit code: 0 all well, 1 it could not be done, 2 wrong arguments.",
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_check_model, _add_edit, _add_stream, _add_evaluate):
        add(commands)
    return made


def _command(commands, name: str, run, summary: str, example: str) -> argparse.ArgumentParser:
    made = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  python -m kedit_lib {name} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.set_defaults(run=run)
    made.add_argument("model", help="lab, lab-small, a folder with a model, or a hub id such as Qwen/Qwen2.5-0.5B")
    made.add_argument("--dtype", help="float32, bfloat16, float16 or float64 (default: as it is stored)")
    made.add_argument("--device", default="cpu", help="cpu, cuda, … (default: cpu)")
    return made


def _add_method(made) -> None:
    made.add_argument(
        "--method", default="memit", help="rome, r-rome, memit, pmet, alphaedit, ft-m, … (default: memit)"
    )
    made.add_argument(
        "--texts", help="plain text for second moments: a file, a hub name, or self, what the model writes"
    )
    made.add_argument("--save", metavar="FOLDER", help="put the edited model there, for transformers to load")


def _add_edits(made, default: str | None = None) -> None:
    kinds = "lab, world, or a file, folder or hub name of edits: CounterFact, zsRE, yours"
    made.add_argument("--edits", required=default is None, help=f"{kinds} (default: {default})" if default else kinds)
    made.add_argument("--limit", type=int, help="at most so many of them (default: all; 100 of the lab's)")
    made.add_argument("--seed", type=int, default=0, help="decides the sample and the order (default: 0)")


# ---- check-model ----------------------------------------------------------------------------------------------------


def _add_check_model(commands) -> None:
    summary = "say what a model is, try one edit and take it back, and propose layers and λ for it"
    made = _command(commands, "check-model", check_model, summary, "Qwen/Qwen2.5-0.5B --profile gpu")
    made.add_argument(
        "--edits", help="facts to ask it about, as edits with their true objects (default: well-known ones)"
    )
    made.add_argument(
        "--profile", help="the run that minutes are estimated for (default: lab for a lab model, else gpu)"
    )
    made.add_argument("--dry", action="store_true", help="write no params/models/<name>.yaml")


def check_model(args) -> None:
    import kedit_lib as kedit

    model = _load(args)
    edits = kedit.load_edits(args.edits, model=model) if args.edits else None
    table = kedit.check_model(model, edits, args.profile, write=not args.dry)
    width = max(map(len, table.index))
    for what, value in table.value.items():
        print(f"{what:{width}}  {value}")


# ---- edit -----------------------------------------------------------------------------------------------------------


def _add_edit(commands) -> None:
    summary = "make one edit and show what the model says before and after it"
    example = 'lab --prompt "The profession of {} is" --subject "Kies Shurn" --to doctor --save edited'
    made = _command(commands, "edit", edit, summary, example)
    made.add_argument("--prompt", required=True, help="the question, with {} where the subject goes, in quotes")
    made.add_argument("--subject", required=True, help="who or what the fact is about")
    made.add_argument("--to", required=True, help="the new object")
    made.add_argument(
        "--ask", action="append", default=[], metavar="PROMPT", help="another prompt to show (again and again)"
    )
    _add_method(made)
    made.add_argument(
        "--deltas", metavar="FOLDER", help="put the change of the weights alone there (kedit.load_deltas)"
    )


def edit(args) -> None:
    import kedit_lib as kedit

    model = _load(args)
    asked = kedit.Edit(args.prompt, args.subject, args.to, paraphrases=args.ask)
    method = _method(model, args)
    before = kedit.ask(model, asked)
    outcome = method.apply(model, [asked], moments=_moments(model, method, args.texts))
    for kind, row in kedit.ask_table(before, kedit.ask(model, asked)).iterrows():
        print(f"{kind}: {row.prompt}")
        for when, says in (("before", row["said before"]), ("after", row["says after"])):
            print(f"  {when:7} p(new) {row[f'p(new) {when}']:.4f}  {says}")
    if args.deltas:
        print(f"deltas: {outcome.save(args.deltas)}")
    _save(model, args.save)


# ---- stream ---------------------------------------------------------------------------------------------------------


def _add_stream(commands) -> None:
    summary = "make many edits, one on top of the other, and measure along the way"
    made = _command(commands, "stream", stream, summary, "lab --edits lab --limit 50 --method rome --out results/mine")
    _add_edits(made)
    _add_method(made)
    made.add_argument("--batch", type=int, default=1, help="edits written at a time; 0: all at once (default: 1)")
    made.add_argument("--every", type=int, default=25, help="edits between measurements (default: 25)")
    made.add_argument(
        "--out", metavar="FOLDER", help="keep rows and checkpoints there; the same call again goes on from them"
    )


def stream(args) -> None:
    import kedit_lib as kedit

    from .evaluation.edit_probes import EditProbe
    from .models.deltas import record_of

    model = _load(args)
    method = _method(model, args)
    edits = _known(model, args)
    run = kedit.run_stream(
        model,
        edits,
        method,
        batch_size=args.batch or len(edits),
        moments=_moments(model, method, args.texts),
        probes=[EditProbe(each=False, match="contains")],
        store=args.out or (Path(args.save) / "stream" if args.save else None),
        checkpoint_every=args.every,
        progress=sys.stderr.isatty(),
    )
    table = run.checkpoints.query("metric != 'seconds'")
    table = table.pivot(index=["metric", "cohort"], columns="edits_done", values="value")
    print(table.round(3).to_string(na_rep=""))
    if args.save:
        model.load_snapshot(run.final_weights())
        model.applied = [record_of(method.name, method.hyperparameters, edits)]
        _save(model, args.save)


# ---- evaluate -------------------------------------------------------------------------------------------------------


def _add_evaluate(commands) -> None:
    summary = "ask a model about edits: whether it says the new object, to paraphrases too, and what neighbors say"
    made = _command(commands, "evaluate", evaluate, summary, "edited            (a folder that edit or stream saved)")
    _add_edits(made, "those that the model's folder says it holds")
    made.add_argument("--out", metavar="FILE", help="write every row there, as .csv")


def evaluate(args) -> None:
    import pandas as pd

    from .data.atomic import replacing
    from .evaluation.edit_probes import EditProbe
    from .models.deltas import load_record

    if args.limit is not None and args.limit < 1:
        raise KeditError(f"--limit {args.limit}: must be at least 1")
    model = _load(args)
    edits = _edits(model, args) if args.edits else load_record(args.model)[: args.limit]
    table = pd.DataFrame(EditProbe(each=False, match="contains")(model, edits))
    if args.out:
        with replacing(Path(args.out)) as partial:
            table.to_csv(partial, index=False)
    print(f"{len(edits)} edits:")
    print(table.pivot(index="metric", columns="cohort", values="value").round(3).to_string(na_rep=""))


# ---- what they share ------------------------------------------------------------------------------------------------


def _load(args):
    import kedit_lib as kedit

    return kedit.load_model(args.model, dtype=args.dtype, device=args.device)


def _method(model, args):
    """With the model's parameters; a model that has none is told of check-model."""
    import kedit_lib as kedit

    from .data.config import find_model_params

    if find_model_params(model.name) is None:
        raise KeditError(
            f"model {model.name!r}: has no parameters yet; run python -m kedit_lib check-model {model.name}"
        )
    return kedit.method_for(model, args.method)


def _moments(model, method, texts: str | None):
    """C over --texts, or over the lab's own text; kept in results/moments."""
    import kedit_lib as kedit

    from .data.config import LAB_MODELS, results_folder
    from .lab.singles import moment_texts
    from .streams.facts import AUTO, plain_texts

    if not method.needs_moments:
        return None
    lab = texts is None and model.name in LAB_MODELS
    corpus = moment_texts(model) if lab else plain_texts(model, texts or AUTO)
    cache = results_folder() / "moments"
    return kedit.SecondMoments.estimate(model, corpus, method.layers, cache=cache, progress=sys.stderr.isatty())


def _edits(model, args):
    import kedit_lib as kedit

    return kedit.load_edits(args.edits, model=model, limit=args.limit, seed=args.seed)


def _known(model, args):
    """The edits whose true object the model says by itself; how many were left out is printed."""
    import kedit_lib as kedit

    edits = _edits(model, args)
    known, unknown = kedit.known_edits(model, edits, match="contains")
    if not known:
        raise KeditError(f"edits {args.edits!r}: the model knows none of the {len(edits)} facts; give others")
    print(f"{len(known)} edits; {unknown} left out, because the model does not know the fact")
    return known


def _save(model, folder: str | None) -> None:
    if folder:
        model.save_pretrained(folder)
        print(f"edited model: {folder}")


@program
def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    args.run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
