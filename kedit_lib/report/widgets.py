"""Live cells for JupyterLab: knobs on a bench's model.

Each stands below something static that says the same. In a run that nobody watches (KEDIT_STATIC is set, as
`make reproduce` does) a live cell is one sentence that says where it lives.
"""

import html
import os
import time
import warnings
from dataclasses import replace

import ipywidgets as knobs
import pandas as pd
from IPython.display import Markdown, display

from ..data.config import load_model_params
from ..data.edit import Edit, around_places
from ..editing import method_for
from ..editing.compute_z import Doubtful
from ..errors import KeditError
from ..evaluation.single_edits import ask, ask_table

OTHERS = 3  # subjects that a typed prompt is also asked about
WIDE = {"layout": knobs.Layout(width="95%"), "style": {"description_width": "6em"}}
BUTTONS = {"description_width": "6em", "button_width": "auto"}


def live(build, what: str) -> None:
    """Show the widget that `build` makes; what: what one can do with it, for the sentence in its place."""
    if os.environ.get("KEDIT_STATIC"):
        display(Markdown(f"*Live in JupyterLab (`make lab`, then run this notebook): {what}.*"))
    else:
        display(build())


def try_edits(bench, edit: Edit) -> None:
    """Type a prompt, a subject and a new object, choose a method, see what it does; `edit` is filled in."""
    live(lambda: EditKnobs(bench, edit).box, "type an edit of your own, choose a method, and see what it does")


class EditKnobs:
    """Fields for one edit and a button, in `box`; edits are made on the bench's unedited model and taken back."""

    def __init__(self, bench, edit: Edit):
        self.bench = bench
        self._contexts: dict[str, list[str]] = {}  # by style, sampled once
        self.prompt = knobs.Text(edit.prompt, description="prompt", **WIDE)
        self.subject = knobs.Text(edit.subject, description="subject", **WIDE)
        self.target = knobs.Text(edit.target_new, description="new object", **WIDE)
        methods = [name for name in load_model_params(bench.model.name) if name != "model"]
        # No drop-down: JupyterLab takes letters typed in one for its shortcuts, and "r" for rome unmakes the cell.
        self.method = knobs.ToggleButtons(options=methods, description="method", style=BUTTONS)
        self.button = knobs.Button(description="Edit", button_style="primary")
        self.result = knobs.HTML()
        self.button.on_click(self._pressed)
        self.box = knobs.VBox([self.prompt, self.subject, self.target, self.method, self.button, self.result])

    def _pressed(self, _) -> None:
        self.button.disabled = True
        try:
            edit = self.edit(self.prompt.value, self.subject.value, self.target.value)
            table, said = self.try_edit(edit, self.method.value)
            shown = table.to_html(border=0, justify="left", float_format="{:.3f}".format)  # what a model wrote is text
            shown = shown.replace("<td>", '<td style="text-align: left">')
            self.result.value = f'<p>{html.escape(said)}</p><div class="jp-RenderedHTMLCommon">{shown}</div>'
        except KeditError as error:
            self.result.value = f"<p>{html.escape(f'⚠ {error}')}</p>"
        finally:
            self.button.disabled = False

    def edit(self, prompt: str, subject: str, target_new: str) -> Edit:
        """An edit from typed text; the prompt holds `{}` where the subject goes, or the subject itself. Paraphrases,
        neighbors and the true object are those of the bench's own fact; without one, neighbors are the same question
        about others."""
        make = Edit if "{}" in prompt else Edit.from_text
        edit = self.bench.facts.surround(make(prompt, subject, target_new))
        if edit.neighborhood:
            return edit
        others = [e.subject for e in self.bench.edits(0, OTHERS + 1) if e.subject != edit.subject]
        return replace(edit, neighborhood=[s.join(around_places(edit.prompt)) for s in others[:OTHERS]])

    def try_edit(self, edit: Edit, name: str) -> tuple[pd.DataFrame, str]:
        """Make the edit by the method of that name: what was asked before and after (`kedit.ask_table`), and a sentence
        on how the edit went."""
        model, method = self.bench.model, method_for(self.bench.model, name)
        with model.temporarily(), warnings.catch_warnings():
            warnings.simplefilter("ignore", Doubtful)  # the table shows it
            if (style := method.context_style) not in self._contexts:
                self._contexts[style] = self.bench.contexts(method)
            moments = self.bench.moments if method.needs_moments else None
            before, begin = ask(model, edit), time.perf_counter()
            outcome = method.apply(model, [edit], moments=moments, contexts=self._contexts[style])
            seconds, after = time.perf_counter() - begin, ask(model, edit)
        p, steps = outcome.targets[0].probabilities[-1], outcome.targets[0].steps
        said = f"{method.name}: optimised probability {p:.3f} after {steps} steps, {seconds:.2f} s. It is taken back."
        return ask_table(before, after), said
