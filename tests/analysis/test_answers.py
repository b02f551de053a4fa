"""The two sentences of each answer of notebook 06, from hand-made tables."""

import re

import pandas as pd
from test_causes import moved

from kedit_lib.analysis import answers, causes
from kedit_lib.analysis.recovery import AS_IS, MORE_STEPS


def sentences(text: str) -> int:
    """How many: the question in front is none."""
    said = re.sub(r"^\*\*[^*]*\?\*\*", "", text)
    return len(re.findall(r"[.!?](?=\s|$)", said))


def bugs(*rows):
    columns = ["stream", "order", "edits", "N_model", "p first 25", "p last 25", "untouched"]
    return pd.DataFrame(rows, columns=columns)


LEFT = "PMET, padded left and looked up as if right"


def test_which_bug_says_each_stream_by_its_medians():
    title = "PMET itself"
    table = bugs(
        (title, 0, 450, 410, 0.7, 0.8, 0.7),
        (title, 1, 450, 400, 0.9, 0.6, 0.9),
        (LEFT, 0, 450, 20, 0.5, 3e-5, 0.0),
    )
    said = answers.which_bug(table)
    assert "of PMET itself goes 0.8 → 0.7 (80%) over 450 edits" in said
    assert "*padded left and looked up as if right* 0.5 → 3e-05 (0%)" in said
    assert sentences(said) == 2


def test_without_the_stream_itself_nothing_is_compared():
    assert (
        answers.which_bug(bugs(("PMET, both bugs", 0, 450, 20, 0.5, 3e-5, 0.0)))
        == "**A bug?** PMET itself was not run there."
    )


def changes(*rows):
    columns = ["stream", "order", "N_optimisation", "N_model", "edits kept", "untouched"]
    return pd.DataFrame(rows, columns=columns).assign(edits=450)


TITLE, *CHANGED = causes.INTERVENTIONS


def test_what_spares_bystanders_is_told_from_what_spares_the_printed_probability():
    anchored, clamp = "norm of the target anchored", "clamp 0.75 for 4"
    table = changes(
        (TITLE, 0, 200, 60, 0.02, 0.01),
        (TITLE, 1, 220, 80, 0.04, 0.03),
        (anchored, 0, None, 70, 0.2, 0.1),
        (anchored, 1, None, 75, 0.2, 0.1),
        (clamp, 0, None, None, 0.7, 0.8),
        ("z from the unedited model", 0, None, 90, 0.3, 0.1),
        (clamp, 1, None, None, 0.74, 0.9),
        ("z from the unedited model", 1, None, 90, 0.3, 0.1),
    )
    said = answers.what_helps(table)
    assert f"outlive 450 edits with *{clamp}* (72%, 85%)" in said
    assert "3% of the edits and 2% of the untouched facts are right at the end without" in said
    assert "half of these are lost at edit 70 (orders 0, 1)" in said
    assert f"The printed probability lasts, and half of the bystanders do not, with *{anchored}* (72): write" in said
    assert "z from the unedited model" not in said  # its p is that of the unedited model
    assert sentences(said) == 2


def test_orders_that_some_change_lacks_do_not_count():
    table = changes(
        (TITLE, 0, 200, 60, 0.02, 0.01), (CHANGED[0], 0, 210, 80, 0.02, 0.01), (CHANGED[0], 1, 400, 300, 0.9, 0.9)
    )
    said = answers.what_helps(table)
    assert "Nothing that was tried spares the bystanders" in said
    assert "(orders 0)" in said
    apart = answers.what_helps(table[~((table.stream == TITLE) | (table.order == 0)) | (table.stream == TITLE)])
    assert apart == "**What delays it?** No order was run with every change."


def test_a_stream_that_loses_nothing_has_nothing_to_delay():
    said = answers.what_helps(changes((TITLE, 0, None, None, 0.9, 0.9), (CHANGED[0], 0, None, None, 0.9, 0.9)))
    assert "does not lose half of its bystanders within 450 edits" in said


def settings():
    rows = [
        ("v_lr", v, v == 2.0, 0, None, n, 0.5, kept, kept)
        for v, n, kept in ((0.5, None, 0.6), (2, 60, 0.1), (4, 45, 0.0))
    ]
    rows += [("v_weight_decay", v, v == 0.001, 0, 200, 60, 0.5, 0.1, 0.1) for v in (0.0, 0.001, 0.5)]
    rows += [("layers", v, v == 3, 0, 200, n, 0.5, 0.1, 0.1) for v, n in ((1, 30), (3, 60))]
    return moved(*rows)


def test_one_value_on_three_orders_is_no_variation():
    table = moved(*[("v_lr", 2.0, True, order, 200, 60, 0.1, 0.1, 0.1) for order in range(3)])
    said = answers.answers(
        pd.DataFrame(), pd.DataFrame(), pd.DataFrame(), table, told(), reached(), pd.DataFrame(), bugs()
    )
    assert "Which setting" not in said


def test_when_is_two_sentences():
    many = told(*[("s", 0, n, 100.0, 450) for n in (80.0, 120.0, 100.0)], ("t", 0, 900.0, None, 450))
    line = answers.answers(*[pd.DataFrame()] * 3, moved(), many, reached(), pd.DataFrame(), bugs())
    assert line.startswith("- **When?** Foretold") and "of 1 that never lost half, 1 were foretold to last" in line
    assert sentences(line.removeprefix("- ")) == 2


def told(*rows):
    return pd.DataFrame(rows, columns=["stream", "order", "foretold", "observed", "length"])


def test_the_settings_that_move_it_and_those_that_hardly_do():
    said = answers.which_setting(settings())
    assert "*v_lr* (4 → 0.5: edit 45 → beyond edit 450)" in said
    assert "*v_weight_decay* move it by less than a factor of 2" in said
    assert "layers" not in said  # two values say little
    assert "with *v_lr* at 0.5 60% of 450 edits and 60% of the untouched facts" in said
    assert sentences(said) == 2


def reached(*rows):
    return pd.DataFrame(rows, columns=["stream", "order", "padding", "edit", "reach", "lifted", "frozen", "p", "v0"])


def test_frozen_is_told_from_sunk():
    table = reached(
        ("a", 0, "right", 25, 4.0, 9e3, 0.0, 0.9, 40.0),
        ("a", 0, "right", 450, 1.5, 7.0, 0.25, 0.02, 400.0),
        ("b", 0, "right", 450, 4.0, 9e3, 0.0, 0.9, 40.0),
        ("bug", 0, "wrong", 450, 0.02, 1.0, 1.0, 4e-5, 5961.0),
    )
    ends = {AS_IS: 9e-4, MORE_STEPS: 2e-3, "tokens behind it unedited": 0.77}
    rows = [("s", 0, 450, budget, p) for budget, p in ends.items()] + [("bug", 0, 450, "tried there", 6e-5)]
    lifted = pd.DataFrame(rows, columns=["stream", "order", "edits_done", "budget", "p_last"])
    said = answers.sunk_or_frozen(table, lifted)
    assert "100% of the last 25 edits with prompts padded wrongly and in at most 25% in any of 2 other streams" in said
    assert "has grown to 5,961 there, and of larger budgets and the right padding none brings it above 6e-05" in said
    assert "merely sunk is mended by no larger budget (0.0009 → 0.002 with 10 times as many steps)" in said
    assert "for the tokens where answers are read are spoilt (*tokens behind it unedited*: 0.77)" in said
    assert "merely sunk" not in answers.sunk_or_frozen(table, lifted[lifted.stream == "bug"])
    assert "brings it above" not in answers.sunk_or_frozen(table, lifted[lifted.stream == "s"])
    assert sentences(answers.sunk_or_frozen(table, lifted[:0])) == 2
    assert sentences(said) == 2


def test_why_follows_the_largest_share():
    columns = ["stream", "order", "moment", "spills", "agreement", "response"]
    alive = pd.DataFrame(columns=["stream", "superposed", "shift", "right"])
    for share, (headline, _) in answers.WHYS.items():
        row = {"stream": "x", "order": 0, "moment": "the end", **dict.fromkeys(answers.WHYS, 0.1), share: 0.8}
        said = answers.why(pd.DataFrame([row], columns=columns), alive)
        assert headline in said and sentences(said) == 2


def test_why_speaks_of_the_moment_when_half_are_lost():
    columns = ["stream", "order", "moment", "spills", "agreement", "response"]
    shares = pd.DataFrame(
        [
            ("x", 0, "the end", 1.0, 0.05, -0.05),
            ("y", 0, "the loss of half of them", 0.74, 0.03, 0.23),
            ("y", 1, "the loss of half of them", 0.80, 0.03, 0.17),
            ("y", 0, "the end", 0.4, 0.1, 0.5),
        ],
        columns=columns,
    )
    alive = pd.DataFrame({"stream": "y", "superposed": False, "shift": [0.5, 1.0, 4.0], "right": [0.9, 0.75, 0.25]})
    said = answers.why(shares, alive)
    assert "77% (74% to 80%) of the squared shift" in said
    assert "has moved by 2 of its size" in said
    assert "3% that spills agree, 20% (17% to 23%) that edits answer" in said
    assert sentences(said) == 2
    late = answers.why(shares[shares.moment == "the end"], alive[:1])
    assert "at the end, 70% (40% to 100%)" in late and "size" not in late
