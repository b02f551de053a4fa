"""Live cells for JupyterLab: knobs on the functions of `kedit_lib.report.live`.

Each stands below a static figure that says the same. In a run that nobody watches (KEDIT_STATIC is set, as
`make reproduce` does) a live cell is one sentence that says where it lives.
"""

from __future__ import annotations

import base64
import html
import os

import ipywidgets as knobs
import matplotlib.pyplot as plt
from IPython.display import Markdown, display

from ..data.edit import Edit
from ..errors import KeditError
from .figures import png_of
from .live import Desk, plot_along, stop_sentence, stops_of

WIDE = {"layout": knobs.Layout(width="95%"), "style": {"description_width": "6em"}}
BUTTONS = {"description_width": "6em", "button_width": "auto"}


def try_edits(bench, edit: Edit) -> None:
    """Type a prompt, a subject and a new object, choose a method, see what it does; `edit` is filled in."""
    _live(lambda: EditKnobs(bench, edit).box, "type an edit of your own, choose a method, and see what it does")


def drag_along(bench, name: str, order: int = 0) -> None:
    """Drag along a stream: age × checkpoint, norms, accuracies. It is run first if it never was."""
    _live(lambda: StreamKnobs(bench, name, order).box, "drag along this stream, and see what it still knows")


def _live(build, what: str) -> None:
    if os.environ.get("KEDIT_STATIC"):
        display(Markdown(f"*Live in JupyterLab (`make lab`, then run this notebook): {what}.*"))
    else:
        display(build())


class EditKnobs:
    """The knobs of `live.Desk.try_edit`, in `box`."""

    def __init__(self, bench, edit: Edit):
        self.desk = Desk(bench)
        self.prompt = knobs.Text(edit.prompt, description="prompt", **WIDE)
        self.subject = knobs.Text(edit.subject, description="subject", **WIDE)
        self.target = knobs.Text(edit.target_new, description="new object", **WIDE)
        # No drop-down: JupyterLab takes letters typed in one for its shortcuts, and "r" for rome unmakes the cell.
        self.method = knobs.ToggleButtons(options=self.desk.methods, description="method", style=BUTTONS)
        self.button = knobs.Button(description="Edit", button_style="primary")
        self.result = knobs.HTML()
        self.button.on_click(self._pressed)
        self.box = knobs.VBox([self.prompt, self.subject, self.target, self.method, self.button, self.result])

    def _pressed(self, _) -> None:
        self.button.disabled = True
        try:
            edit = self.desk.edit(self.prompt.value, self.subject.value, self.target.value)
            table, said = self.desk.try_edit(edit, self.method.value)
            self.result.value = _paragraph(said) + _table(table)
        except KeditError as error:
            self.result.value = _paragraph(f"⚠ {error}")
        finally:
            self.button.disabled = False


class StreamKnobs:
    """A slider over the stops of one stream, in `box`, with a picture and a sentence (`live.plot_along`)."""

    def __init__(self, bench, name: str, order: int):
        self.run = bench.run(name, order)
        stops = stops_of(self.run)
        self.slider = knobs.SelectionSlider(
            options=stops, value=stops[-1], description="edits made", continuous_update=False, **WIDE
        )
        self.picture, self.said = knobs.HTML(), knobs.HTML()
        self.slider.observe(self._moved, "value")
        self.box = knobs.VBox([self.slider, self.picture, self.said])
        self._moved()

    def _moved(self, _=None) -> None:
        at = self.slider.value
        fig, _ = plot_along(self.run, at)
        said, picture = stop_sentence(self.run, at), base64.b64encode(png_of(fig)).decode()
        plt.close(fig)
        alt = f"Age by checkpoint map and norms of the stream up to edit {at}."
        self.picture.value = f'<img alt="{alt}" style="max-width: 100%" src="data:image/png;base64,{picture}">'
        self.said.value = _paragraph(said)


def _table(table) -> str:
    """As JupyterLab shows tables, texts to the left; what a model wrote stays text."""
    shown = table.to_html(border=0, justify="left", float_format="{:.3f}".format)
    shown = shown.replace("<td>", '<td style="text-align: left">')
    return f'<div class="jp-RenderedHTMLCommon">{shown}</div>'


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"
