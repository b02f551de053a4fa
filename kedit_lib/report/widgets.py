"""Live cells for JupyterLab: knobs on a bench's model, each below something static that says the same."""

import functools
import os
import time
import warnings
from dataclasses import replace

import ipywidgets as knobs
from IPython.display import Markdown, display

from ..data.config import load_model_params
from ..data.edit import Edit, around_places
from ..editing import method_for
from ..editing.compute_z import Doubtful
from ..errors import KeditError
from ..evaluation.single_edits import ask, ask_table

OTHERS = 3  # subjects that a typed prompt is also asked about


def live(build, what: str) -> None:
    """Show the widget that `build` makes; in `make reproduce` (KEDIT_STATIC) a sentence that says what it is for."""
    if os.environ.get("KEDIT_STATIC"):
        display(Markdown(f"*Live in JupyterLab (`make lab`, then run this notebook): {what}.*"))
    else:
        display(build())


def try_edits(bench, edit: Edit) -> None:
    """Fields for an edit, filled with `edit`, a method, a button. It is made on the unedited model and taken back."""

    @functools.cache
    def prepared(name: str):
        """A method with its moments and contexts, which take up to a minute to sample."""
        method = method_for(bench.model, name)
        return method, bench.inputs(method)

    def attempt(prompt: str, subject: str, target_new: str, method: str) -> None:
        try:
            asked = typed_edit(bench, edit, prompt, subject, target_new)
            with bench.model.temporarily(), warnings.catch_warnings():
                warnings.simplefilter("ignore", Doubtful)  # the table shows it
                chosen, inputs = prepared(method)
                before, begin = ask(bench.model, asked), time.perf_counter()
                (target,) = chosen.apply(bench.model, [asked], **inputs).targets
                seconds, after = time.perf_counter() - begin, ask(bench.model, asked)
        except KeditError as error:
            print(f"⚠ {error}")
        else:
            went = f"optimised probability {target.probabilities[-1]:.3f} after {target.steps} steps, {seconds:.2f} s"
            print(f"{chosen.name}: {went}. It is taken back.")
            display(ask_table(before, after).round(3))

    look = {"rows": 1, "layout": knobs.Layout(width="95%")}
    filled = {"prompt": edit.prompt, "subject": edit.subject, "target_new": edit.target_new}
    fields = {name: knobs.Textarea(text, description=name, **look) for name, text in filled.items()}
    methods = [name for name in load_model_params(bench.model.name) if name != "model"]
    # No drop-down: JupyterLab takes letters typed in one for its shortcuts, and "r" for rome unmakes the cell.
    method = knobs.ToggleButtons(options=methods, description="method", style={"button_width": "auto"})
    build = functools.partial(knobs.interactive, attempt, {"manual": True, "manual_name": "Edit"})
    live(lambda: build(**fields, method=method), "type an edit of your own, choose a method, and see what it does")


def typed_edit(bench, known: Edit, prompt: str, subject: str, target_new: str) -> Edit:
    """An edit from typed text; the prompt holds `{}` where the subject goes, or the subject itself. About the `known`
    fact it has its paraphrases and neighbors; without these, neighbors are the same question about others."""
    edit = (Edit if "{}" in prompt else Edit.from_text)(prompt, subject, target_new)
    if (edit.text, edit.subject) == (known.text, known.subject):
        edit = replace(known, target_new=edit.target_new)
    if edit.neighborhood:
        return edit
    others = [e.subject for e in bench.edits(0, OTHERS + 1) if e.subject != edit.subject]
    return replace(edit, neighborhood=[s.join(around_places(edit.prompt)) for s in others[:OTHERS]])
