"""What notebook 06 answers, two sentences each: what was found and what to do. Every number comes from its tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from ..streams.runner import WINDOW
from . import width_fit as extrapolation
from .causes import BY_CONSTRUCTION, INTERVENTIONS, PMET, VALUES, foretold_sentence
from .recovery import AS_IS, HEALED, MORE_STEPS

SPOILT = dict(  # what is wrong where healing these tokens gives the probability back
    zip(
        HEALED,
        ("the tokens before the subject are spoilt", "the tokens where answers are read are spoilt"),
        strict=True,
    )
)
STRONG, WEAK = 3.0, 2.0  # a setting that moves N_model by such a factor decides; by less than the other, hardly counts


def answers(
    shares: pd.DataFrame,
    alive: pd.DataFrame,
    changed: pd.DataFrame,
    moved: pd.DataFrame,
    told: pd.DataFrame,
    reached: pd.DataFrame,
    lifted: pd.DataFrame,
    bugs: pd.DataFrame,
    fits: pd.DataFrame | None = None,
) -> str:
    """The notebook in bullets of two sentences, markdown; from its tables, in its order: `causes.shares_table`,
    `cause_figures.survival_form`, `causes.interventions`, `causes.sensitivity`, `causes.foretold`, `lifting.reaches`,
    `lifting.lifting_table`, `causes.interventions` of PMET, `extrapolation.fit_table`. What was not run is left out."""
    lines = [why(shares, alive)] if len(shares) else []
    if len(changed) and next(iter(INTERVENTIONS)) in set(changed.stream) and changed.stream.nunique() > 1:
        lines.append(what_helps(changed))
    if len(moved) and moved.groupby("field").value.nunique().max() >= VALUES:
        lines.append(which_setting(moved))
    lines.append(f"**When?** {foretold_sentence(told)} Run `kedit.foretell` before a stream, not after it.")
    if {"right", "wrong"} <= set(reached.padding if len(reached) else ()):
        lines.append(sunk_or_frozen(reached, lifted))
    if bugs.stream.nunique() > 1:
        lines.append(which_bug(bugs))
    if fits is not None:
        lines.append(extrapolation.answer(fits))
    return "\n".join(f"- {line}" for line in lines)


WHYS = {  # by the largest share: what it means, and what follows
    "spills": (
        "Edits do not fight each other, each spills a little on every bystander",
        "Harm adds up from the first edit on",
    ),
    "agreement": ("What edits spill on bystanders points the same way", "Harm grows with the square of their number"),
    "response": ("Edits grow in answer to the ones before them", "Harm speeds up as edits go on"),
}


def why(shares: pd.DataFrame, alive: pd.DataFrame) -> str:
    """Of the streams that lost half of their bystanders, at that moment (of all, at the end, where none did)."""
    moments = set(shares.moment)
    moment = "the loss of half of them" if "the loss of half of them" in moments else "the end"
    part = shares[shares.moment == moment]
    headline, follows = WHYS[part[list(WHYS)].median().idxmax()]
    sizes = [half(rows) for _, rows in alive[~alive.superposed].groupby("stream")] if len(alive) else []
    sizes = [size for size in sizes if np.isfinite(size)]
    lost = f" (half of the facts are lost once that has moved by {np.median(sizes):.2g} of its size)" if sizes else ""
    return (
        f"**Why?** {headline}: at {moment}, {_percent(part.spills)} of the squared shift of their values{lost} is the "
        f"plain sum of what single edits spill, {_percent(part.agreement)} that spills agree, "
        f"{_percent(part.response)} that edits answer to earlier ones ({', '.join(dict.fromkeys(part.stream))}). "
        f"{follows}: measure it on facts that no edit touches, and make every edit write less."
    )


def half(rows: pd.DataFrame) -> float:
    """The shift at which half are right: where the curve crosses ½, on a log scale; NaN if it does not."""
    shift, right = np.log(rows["shift"].to_numpy()), rows.right.to_numpy()
    below = np.flatnonzero(right < 0.5)
    if not len(below) or below[0] == 0:
        return float("nan")
    i = below[0]
    part = (right[i - 1] - 0.5) / (right[i - 1] - right[i])
    return float(np.exp(shift[i - 1] + part * (shift[i] - shift[i - 1])))


def filled(table: pd.DataFrame) -> pd.DataFrame:
    """Collapse points as numbers; the stream's length where it was not reached."""
    return table.assign(**{c: table[c].astype(float).fillna(table.edits) for c in ("N_optimisation", "N_model")})


def what_helps(changed: pd.DataFrame) -> str:
    """Medians over the orders that every change has; what was not reached counts as the stream's length."""
    title = next(iter(INTERVENTIONS))
    orders = sorted(set.intersection(*(set(rows.order) for _, rows in changed.groupby("stream"))))
    if not orders:
        return "**What delays it?** No order was run with every change."
    table = filled(changed[changed.order.isin(orders)])
    by = table.groupby("stream", sort=False)[["N_optimisation", "N_model", "edits kept", "untouched"]].median()
    base, rest, whole = by.loc[title], by.drop(index=title), table.edits.max()
    if base.N_model >= whole:
        return f"**What delays it?** The stream itself does not lose half of its bystanders within {whole} edits."
    alive = rest[rest.N_model >= whole].sort_values("untouched", ascending=False)
    kept = "; ".join(f"*{n}* ({r['edits kept']:.0%}, {r.untouched:.0%})" for n, r in alive.iterrows())
    only = [n for n in rest.index if rest.N_optimisation[n] >= whole > rest.N_model[n] and n not in BY_CONSTRUCTION]
    printed = ", ".join(f"*{n}* ({rest.N_model[n]:.0f})" for n in only)
    without = (
        f"{base['edits kept']:.0%} of the edits and {base.untouched:.0%} of the untouched facts are right at the end "
        f"without, and half of these are lost at edit {base.N_model:.0f}"
    )
    spared = f"Half of the bystanders outlive {whole} edits with {kept} (edits kept, untouched facts right)"
    advice = "write less first, and do not take a probability that stays for a model that does."
    if only:
        advice = f"the printed probability lasts, and half of the bystanders do not, with {printed}: {advice}"
    return (
        f"**What delays it?** {spared if kept else 'Nothing that was tried spares the bystanders'}; {without} (orders "
        f"{', '.join(map(str, orders))}). {advice[0].upper()}{advice[1:]}"
    )


def which_setting(moved: pd.DataFrame) -> str:
    """By how much each hyperparameter moves N_model over its values: medians over orders."""
    table = filled(moved)
    points = table.groupby(["field", "value"])[["N_model", "edits kept", "untouched"]].median().reset_index()
    ends = points.groupby("field").N_model.agg(["min", "max", "size"])
    ends = ends[ends["size"] >= VALUES].assign(factor=lambda t: t["max"] / t["min"]).sort_values("factor")
    strong, weak = ends[ends.factor >= STRONG][::-1], ends[ends.factor < WEAK]
    named = ", ".join(
        f"*{field}* ({_between(points[points.field == field], whole=table.edits.max())})" for field in strong.index
    )
    hardly = f"; {', '.join(f'*{field}*' for field in weak.index)} move it by less than a factor of {WEAK:g}"
    best = points.assign(both=points[["edits kept", "untouched"]].min(axis=1)).sort_values("both").iloc[-1]
    base = table[table.base][["edits kept", "untouched"]].median()
    first = "Turn one of these first: with" if len(strong) else "The most is kept with"
    return (
        f"**Which setting?** The loss of half of the untouched facts is moved by {named or 'no setting much'}"
        f"{hardly if len(weak) else ''}. {first} *{best.field}* at {best.value:g} "
        f"{best['edits kept']:.0%} of {table.edits.max()} edits and {best.untouched:.0%} of the untouched facts are "
        f"right at the end, for {base['edits kept']:.0%} and {base.untouched:.0%}."
    )


def _between(points: pd.DataFrame, whole: int) -> str:
    """From which value to which, and from which edit to which."""
    first, last = points.loc[points.N_model.idxmin()], points.loc[points.N_model.idxmax()]
    there = f"edit {last.N_model:.0f}" if last.N_model < whole else f"beyond edit {whole}"
    return f"{first.value:g} → {last.value:g}: edit {first.N_model:.0f} → {there}"


def sunk_or_frozen(reached: pd.DataFrame, lifted: pd.DataFrame) -> str:
    """Frozen optimisations at the end of streams with and without the padding bug; and what of all that was tried gives
    a probability back (medians over orders)."""
    last = reached[reached.edit == reached.groupby(["stream", "order"]).edit.transform("max")]
    worst, wrong = last.groupby("padding").frozen.max(), last[last.padding == "wrong"]
    sunk, stuck = "", ""
    end = lifted[lifted.edits_done == lifted.edits_done.max()] if len(lifted) else pd.DataFrame(columns=["budget"])
    healed = end.budget.isin(HEALED).groupby(end.stream).transform("any") if len(end) else end.budget
    if len(end) and not healed.all():
        stuck = f", and of larger budgets and the right padding none brings it above {end.p_last[~healed].max():.2g}"
    if len(end) and healed.any():
        p = end[healed].groupby("budget", sort=False).p_last.median()
        best = p[p.index.isin(HEALED)].idxmax()
        lift = "is mended by no larger budget" if p[MORE_STEPS] < 0.5 else "wants a larger budget"
        spoilt = f", for {SPOILT[best]} (*{best}*: {p[best]:.2g})" if p[best] >= 0.5 else ""
        sunk = f"; one that has merely sunk {lift} ({p[AS_IS]:.2g} → {p[MORE_STEPS]:.2g} with {MORE_STEPS}){spoilt}"
    return (
        "**Sunk, or frozen?** A probability that ends where it began, as in the report's log, was seen in "
        f"{_percent(wrong.frozen)} of the last {WINDOW} edits with prompts padded wrongly and in at most "
        f"{worst['right']:.0%} in any of {last[last.padding == 'right'].stream.nunique()} other streams; the state at "
        f"the looked-up token has grown to {wrong.v0.median():,.0f} there{stuck}. Compare the first and the last step "
        f"of one optimisation: equal means look for a bug, and begin again{sunk}."
    )


def which_bug(bugs: pd.DataFrame) -> str:
    """What PMET comes to with each bug of the public log, beside PMET without one; medians over orders."""
    title, columns = next(iter(PMET)), ["p first 25", "p last 25", "untouched"]
    by = bugs.groupby("stream", sort=False)[columns].median()
    if title not in by.index:
        return "**A bug?** PMET itself was not run there."
    named = "; ".join(f"{_short(name)} {_from_to(row)}" for name, row in by.drop(index=title).iterrows())
    return (
        f"**A bug?** The optimised probability of PMET itself goes {_from_to(by.loc[title])} over {bugs.edits.max()} "
        f"edits (in brackets: untouched facts right at the end); {named}. Before a method is blamed for a collapse, "
        "look at how its prompts were padded and which tokens its targets have."
    )


def _short(name: str) -> str:
    return f"*{name.removeprefix('PMET, ')}*"


def _from_to(row: pd.Series) -> str:
    return f"{row['p first 25']:.2g} → {row['p last 25']:.2g} ({row.untouched:.0%})"


def _percent(values: pd.Series) -> str:
    """The median as a percentage, with the range where orders differ."""
    low, middle, high = values.min(), values.median(), values.max()
    return f"{middle:.0%}" if f"{low:.0%}" == f"{high:.0%}" else f"{middle:.0%} ({low:.0%} to {high:.0%})"


def said(folder: Path) -> str:
    """What an earlier run of notebook 06 answered; a pointer to it when there was none."""
    path = folder / "06_answers.md"
    return path.read_text(encoding="utf-8").strip() if path.exists() else "Not run yet: `06_why_it_collapses`."
