"""Sentences of notebook 06 from hand-made tables."""

import pandas as pd

from kedit_lib import causes


def bugs(*rows):
    columns = ["stream", "order", "edits", "N_optimisation", "N_model", "p first 25", "p last 25"]
    return pd.DataFrame(rows, columns=columns)


def test_which_bug_says_each_stream_by_its_medians():
    title, left = "PMET itself", "PMET, padded left and looked up as if right"
    table = bugs(
        (title, 0, 450, None, 410, 0.7, 0.8),
        (title, 1, 450, None, 400, 0.9, 0.6),
        (left, 0, 450, 31, 20, 0.5, 3e-5),
    )
    said = causes._which_bug(table)
    assert "is 0.8 in the first 25 edits and 0.7 in the last of 450" in said
    assert "with *padded left and looked up as if right* 0.5 and 3e-05" in said


def test_without_the_stream_itself_nothing_is_compared():
    table = bugs(("PMET, both bugs", 0, 450, 31, 20, 0.5, 3e-5))
    assert causes._which_bug(table) == "**A bug?** PMET itself was not run there."


def test_every_stream_of_pmet_is_in_the_catalogue():
    from kedit_lib.catalogue import cause_streams

    assert set(causes.PMET.values()) <= {"pmet", *cause_streams()}
    assert {s.change for n, s in cause_streams().items() if n in causes.PMET.values()} >= {"left padded", "both bugs"}


def test_changes_that_tie_are_all_named_with_the_orders_they_have():
    title, (first, second, *_) = next(iter(causes.INTERVENTIONS)), list(causes.INTERVENTIONS)[1:]
    rows = [
        (title, 0, 200, 60, 0.1),
        (first, 0, None, None, 0.8),
        (first, 1, None, 300, 0.8),
        (second, 0, None, None, 0.7),
    ]
    columns = ["stream", "order", "N_optimisation", "N_model", "edits kept"]
    said = causes._what_helps(pd.DataFrame(rows, columns=columns).assign(edits=450, untouched=0.5))
    assert f"last longest with *{first}* and *{second}*: half are not lost within them" in said
    assert "lost in 1 of 2 and 0 of 1" in said
