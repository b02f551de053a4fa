"""Tables of notebook 06 from hand-made runs and tables."""

import pandas as pd
import pytest

from kedit_lib.analysis import causes
from kedit_lib.analysis import tables as findings
from kedit_lib.streams.bench import data_folder
from kedit_lib.streams.named_streams import cause_streams, sensitivity_streams


def test_every_stream_of_pmet_is_in_the_catalogue():
    assert set(causes.PMET.values()) <= {"pmet", *cause_streams()}
    assert {s.change for n, s in cause_streams().items() if n in causes.PMET.values()} >= {"left padded", "both bugs"}


def moved(*rows):
    columns = ["field", "value", "base", "order", "N_optimisation", "N_model", "p_end", "edits kept", "untouched"]
    table = pd.DataFrame(rows, columns=columns).assign(edits=450)
    return table.astype({"N_optimisation": "Int64", "N_model": "Int64"})


def test_settings_are_shown_with_their_range_over_orders():
    table = causes.settings_table(
        moved(
            ("v_lr", 1.0, False, 0, None, 150, 0.9, 0.25, 0.2),
            ("v_lr", 2.0, True, 0, 209, 60, 0.02, 0.02, 0.01),
            ("v_lr", 2.0, True, 1, 268, 80, 0.04, 0.04, 0.03),
            ("v_lr", 2.0, True, 2, None, 90, 0.03, 0.03, 0.02),
        )
    )
    assert table.value.tolist() == ["1", "2*"]
    assert table.orders.tolist() == [1, 3]
    assert table.N_optimisation.tolist() == ["> 450", "209 at the earliest, in 2 of 3 orders"]
    assert table.N_model.tolist() == ["150", "80 (60–90)"]
    assert table.p_end.tolist() == pytest.approx([0.9, 0.03])
    assert findings.tidy(table).N_model.tolist() == table.N_model.tolist()


def test_every_setting_is_a_stream(monkeypatch):
    """Nothing that the sweep varies is forgotten where it is read, and the stream itself stands in every field."""
    asked = []

    class Bench:
        def method(self, name):
            import kedit_lib as kedit

            return kedit.MEMIT(layers=[0, 1, 2], v_lr=2.0)

        def contexts(self, method):
            return ["{}"] * 6

        def runs(self, name):
            asked.append(name)
            return {}

    assert causes.sensitivity(Bench()).empty
    assert set(sensitivity_streams()) <= set(asked)
    assert asked.count(causes.COLLAPSING) == 7


def test_predictions_are_held_against_medians():
    title, history, clamp = next(iter(causes.INTERVENTIONS)), "a memory of earlier keys (history)", "clamp 0.75 for 4"
    rows = [(title, 0, 200, 60), (title, 1, 220, 80), (history, 0, 400, 80), (history, 1, 420, 70)]
    rows += [(clamp, 0, None, None), (clamp, 1, None, None)]
    table = pd.DataFrame(rows, columns=["stream", "order", "N_optimisation", "N_model"]).assign(edits=450)
    said = causes.against_predictions(table)
    assert said.startswith("**Of 4 predictions 3 held**")
    assert f"These did not: *{clamp}*: the optimised probability, foreseen earlier, came later (× 2.1)." in said
    assert set(causes.PREDICTED) <= set(causes.INTERVENTIONS)
    assert causes.against_predictions(table[:2]).startswith("**Of 0 predictions 0 held**")


def test_committed_tables_stay_small():
    assert sum(path.stat().st_size for path in data_folder().iterdir()) < 10_000_000
