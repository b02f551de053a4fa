"""`kedit check-model`, `edit`, `stream` and `evaluate`: the library on one model, from the command line."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

import kedit_lib as kedit

from .errors import KeditError

CANARIES = 160  # facts that a guard may ask, four looks' worth
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
Save = Annotated[str | None, Option(metavar="FOLDER", help="save the edited model there, for transformers to load")]


def check_model(
    model: Model,
    dtype: Dtype = None,
    device: Device = "cpu",
    trust_remote_code: Trust = False,
    edits: Annotated[
        str | None, Option(help="facts to ask, as edits with their true objects (default: common ones)")
    ] = None,
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
    _save(loaded, save)


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
    guard: Annotated[
        Literal["warn", "stop"] | None, Option(help="what to do when unrelated known facts are lost")
    ] = None,
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
    from .evaluation.edit_probes import EditProbe
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
    run = kedit.run_stream(
        loaded,
        known,
        editor,
        batch_size=batch or len(known),
        moments=moments,
        history=editor.new_history(loaded, moments, keep=kept) if keep else None,
        probes=[EditProbe(each=False, match="contains")],
        store=out or (Path(save) / "stream" if save else None),
        checkpoint_every=every,
        progress=sys.stderr.isatty(),
        guard=watch,
    )
    table = run.checkpoints.query("metric != 'seconds'")
    table = table.pivot(index=["metric", "cohort"], columns="edits_done", values="value")
    print(table.round(3).to_string(na_rep=""))
    if watch:
        print(f"guard: {watch}")
    if save:
        loaded.load_snapshot(run.final_weights())
        loaded.applied = [record_of(editor.name, editor.hyperparameters, known[: len(run.edits)])]
        _save(loaded, save)


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
    from .evaluation.edit_probes import EditProbe
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
    from .lab import moment_texts
    from .streams.facts import AUTO, plain_texts

    if not method.needs_moments:
        return None
    lab = texts is None and model.name in LAB_MODELS
    corpus = moment_texts(model) if lab else plain_texts(model, texts or AUTO)
    cache = results_folder() / "moments"
    return kedit.SecondMoments.estimate(model, corpus, method.layers, cache=cache, progress=sys.stderr.isatty())


def _save(model, folder: str | None) -> None:
    if folder:
        model.save_pretrained(folder)
        print(f"edited model: {folder}")
