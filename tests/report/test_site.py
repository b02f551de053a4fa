"""The committed report: sources and executed copies agree, figures are whole, README says what the tables say."""

import json
import re
import statistics
from pathlib import Path

import page_tables
import pandas as pd
import pytest

import kedit_lib as kedit
from kedit_lib.__main__ import main
from kedit_lib.data.config import REPOSITORY
from kedit_lib.editing.compute_z import did_nothing
from kedit_lib.report import claims
from kedit_lib.report.notebooks import BOX
from kedit_lib.streams.bench import committed_files

SOURCES = sorted((REPOSITORY / "notebooks").glob("[0-9][0-9]_*.ipynb"))
EXECUTED = REPOSITORY / "notebooks" / "executed"
FIGURES = REPOSITORY / "figures"
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def cells(path: Path):
    """Sources of all cells but the injected parameters."""
    every = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for c in every if "injected-parameters" not in c["metadata"].get("tags", [])]


@pytest.mark.notebooks
def test_smoke_run_of_every_notebook(tmp_path):
    assert len(SOURCES) >= 5
    assert main(["reproduce", "--profile", "smoke"]) == 0
    out = REPOSITORY / "results" / "executed-smoke"
    assert [p.name for p in sorted(out.glob("*.ipynb"))] == [p.name for p in SOURCES]


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_executed_copy_is_of_this_source_its_pictures_described_and_without_errors(source):
    executed = EXECUTED / source.name
    assert executed.exists(), "run make reproduce and commit notebooks/executed"
    title, box, *rest = cells(executed)  # the verdict's output stands in front there, so that the rest runs in order
    assert box == BOX and [title, *rest] == cells(source)
    assert executed.stat().st_size < 1_000_000
    for cell in json.loads(executed.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error"
            if "image/png" in output.get("data", {}):
                assert len(output["metadata"]["image/png"]["alt"]) > 20


def test_every_figure_lies_there_in_each_form_with_its_numbers():
    names = sorted(p.stem for p in FIGURES.glob("*.png"))
    assert len(names) >= 8
    for name in names:
        for ending in ("svg", "pdf", "csv"):
            assert (FIGURES / f"{name}.{ending}").stat().st_size > 0
        assert len(pd.read_csv(FIGURES / f"{name}.csv"))


def test_readme_says_what_the_tables_say():
    for page in page_tables.PAGES:
        assert page_tables.written(page) == (REPOSITORY / page).read_text(encoding="utf-8")


def test_readme_and_docs_are_short():
    assert len(page_tables.between("claims").sub("", README).split()) <= 1500
    for page in (REPOSITORY / "docs").glob("*.md"):
        assert len(page.read_text(encoding="utf-8").split()) <= 1200, page.name


def test_each_yes_of_the_table_of_features_links_to_a_test_that_is_there():
    page = REPOSITORY / "docs" / "features.md"
    text = page.read_text(encoding="utf-8")
    rows = [line.split(" | ")[1] for line in text.splitlines() if line.startswith("| ") and "https://" not in line]
    links = [re.findall(r"\]\((\.\./tests/[a-z_/]+\.py)\)", row) for row in rows]
    assert rows and all(links) and all((page.parent / link).exists() for row in links for link in row)


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_a_notebook_opens_with_its_verdict_and_is_short(source):
    cells = json.loads((EXECUTED / source.name).read_text(encoding="utf-8"))["cells"]
    assert "verdict" in cells[1]["metadata"]["tags"]
    outputs = [o for cell in cells for o in cell.get("outputs", [])]
    said = ["".join(o["data"]["text/markdown"]) for o in outputs if "text/markdown" in o.get("data", {})]
    prose = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    assert len(" ".join(said + prose).split()) <= 2000
    captions = [text.removeprefix("**Figure.** ") for text in said if text.startswith("**Figure.** ")]
    assert all(len(caption.split()) <= 40 for caption in captions)
    assert "**Answer.**" in said[0] if cells[1]["outputs"] else pytest.fail("the verdict cell printed nothing")


def test_the_readmes_first_lines_say_what_the_runs_say():
    names = ["memit-share", "memit-share-rho2", "memit-mass", "memit-mass-rho2"]
    found = kedit.outcomes(kedit.load_runs(names, committed="smollm2").query("order == 0"))
    found = found.set_index(["stream", "setting"])
    scaled, all_scaled = (found.loc[name, "as scaled"] for name in ("memit-share", "memit-mass"))
    batch, share = (found.loc[name, "as printed"] for name in ("memit-mass", "memit-share"))
    three, pmet = (kedit.outcomes(kedit.load_runs([f"{n}-rho2"], committed="smollm2")) for n in ("memit", "pmet"))
    printed = kedit.outcomes(kedit.load_runs(["memit"], committed="smollm2"))
    ours = kedit.outcomes(kedit.load_runs(["pmet"], committed="smollm2"))
    rome = kedit.outcomes(kedit.load_runs(["rome", "rome-rho2"], committed="smollm2"))
    rome = dict(list(rome.groupby("setting").edits_made))
    paths = (FIGURES / "data").glob("smollm2.memit.order?.edits.parquet")
    each = [pd.read_parquet(path).probability_last for path in paths]
    low = int(100 * min(p.rolling(25).median()[:290].min() for p in each)) / 100
    below = [int((p < 4.66e-8).idxmax()) + 1 for p in each]
    (short,) = kedit.outcomes(kedit.load_runs(["memit"], committed="smollm2-60").query("order == 0")).itertuples()
    (long,) = kedit.outcomes(kedit.load_runs(["rome"], committed="smollm2").query("order == 0")).itertuples()
    sums = [f"{name}{rho}" for name in ("memit", "memit-sum") for rho in ("", "-rho2")]
    sums = kedit.outcomes(kedit.load_runs(sums, committed="smollm2").query("order == 0"))
    apart, together = (sums[sums.stream == n].set_index("setting").N_model for n in ("memit-sum", "memit"))
    for said in (
        f"falls from {three.p_first.min():.3f} to between {three.p_last.min():.0e} and {three.p_last.max():.0e} within "
        f"{three.edits_made.min()} to {three.edits_made.max()} edits (three orders)",
        f"PMET's from {pmet.p_first.min():.2f} to {pmet.p_first.max():.2f} to between {pmet.p_last.min():.0e} and "
        f"{pmet.p_last.max():.0e} within {pmet.edits_made.max()} (three)",
        f"has halved at edit {printed.N_optimisation.min()} to {printed.N_optimisation.max()}. The first",
        f"edit below 4.66e-08 is the {min(below)}th to {max(below)}nd; after {printed.edits_made.min()} to "
        f"{printed.edits_made.max()} edits the median of 25 is {printed.p_last.min():.0e} to",
        f"to {printed.p_last.max():.0e}, and the edited model gives all its edits a median of "
        f"{printed.p_edited.min():.0e} to {printed.p_edited.max():.0e}. PMET's (three orders) has halved at edit "
        f"{ours.N_optimisation.min()} to {ours.N_optimisation.max()}; after {ours.edits_made.min()} to "
        f"{ours.edits_made.max()} it is {ours.p_last.min():.0e} to {ours.p_last.max():.0e}. As scaled MEMIT's falls",
        f"at edit {printed.N_model.min()} to {printed.N_model.max()} as printed and "
        f"{three.N_model.min():.0f} or {three.N_model.max():.0f}",
        f"after 60 edits as printed MEMIT reports {short.p_last:.2f} with {short.untouched:.0%} of the unrelated facts "
        f"left, after {long.edits_made} ROME {long.p_last:.2f} with {long.untouched:.0%}",
        f"at edit {apart['as printed']} (sequence: {together['as printed']}), as scaled {apart['as scaled']} "
        f"({together['as scaled']};",
        f"a batch of {batch.edits_made} keeps {batch.edits:.0%} of its edits and {batch.untouched:.0%} of the "
        f"unrelated facts, where a sequence of {printed.edits_made.min()} keeps "
        f"{printed.edits.max():.0%} and {printed.untouched.max():.0%}",
        f"A batch of {share.edits_made}, relative to d_ff the report's 1,000, keeps {share.edits:.0%} and "
        f"{share.untouched:.0%}; as scaled {scaled.edits:.0%} and {scaled.untouched:.0%} "
        f"({all_scaled.edits_made}: {all_scaled.edits:.0%} and {all_scaled.untouched:.0%})",
        f"stays above {low:.2f} until edit 290",
        f"to edit {rome['as printed'].max()}, as scaled {rome['as scaled'].min()} to {rome['as scaled'].max()})",
        f"Relative to d_ff {printed.edits_made[0]} edits are {printed.edits_made[0] / 1536 / (450 / 11008):.1f} times",
    ):
        assert said.replace("%", " %") in README
    assert short.edits_made == 60 and len(three) == len(pmet) == len(ours) == 3
    assert len(each) == 3 and (three.p_lowest < 4.66e-8).all() and (pmet.p_lowest < 4.66e-8).all()


def test_the_readme_says_which_claims_hold_on_the_real_model():
    judged = claims.verdicts(claims.read()).query("model == 'smollm2' and verdict != 'not testable'")
    held = {(r.claim, r.variant, r.setting[3:]) for r in judged.itertuples() if r.verdict == "reproduced"}
    both = {("probability-collapses", m): "MEMIT and PMET collapse" for m in ("MEMIT", "PMET")}
    both |= {("nothing-lifts-it", m): "their optimisations then end below 0.01" for m in ("MEMIT", "PMET")}
    both |= {
        ("rome-stays", "ROME"): "ROME's stays high",
        ("batch-memory", "MEMIT-MASS"): "fits into memory",
        ("causes", "undone"): "later edits undo earlier ones",
        ("causes", "accumulation"): "small errors add up",
    }
    both |= {("batch-leads", "MEMIT-MASS"): "one batch keeps more than single edits"}
    scaled = {("batch-leads", "at N/d_ff = 0.09"): "", ("probability-hides", "ROME"): "ROME's hides lost edits"}
    says = "keeps efficacy and generalisation", "with C off, and of r-ROME, the probability stays high"
    printed = {("batch-keeps", what): says[0] for what in ("efficacy", "generalisation")}
    printed |= {("rome-stays", variant): says[1] for variant in ("ROME, C off", "r-ROME")}
    printed |= {("advice", "many"): "for many edits (450) one batch is ahead of ROME"}
    found = {(*key, "scaled") for key in both | scaled} | {(*key, "printed") for key in both | printed}
    assert held == found
    told = claims.read().query("model == 'smollm2' and claim == 'not-the-only-criterion'").holds
    assert told.dropna().tolist() == [True, True, *[False] * 4]  # "In four of six orders"
    line = next(line for line in README.splitlines() if line.startswith("3. "))
    shared, rest = line.split("As scaled also:")
    first, second = rest.split("In neither")[0].split("As printed also:")
    said = {shared: both.values(), first: scaled.values(), second: printed.values()}
    for part, claimed in said.items():
        assert all(words in part for words in claimed)


def share(values) -> str:
    digits = "0f" if len(values) == 1 else "3g"
    low, high = (f"{100 * v:.{digits}}" for v in (values.min(), values.max()))
    return f"{low} %" if low == high else f"{low} to {high} %"


def test_the_readme_says_what_each_method_leaves_of_sixty_edits():
    names = {
        "gate": "behind a gate, three orders",
        "retrieval": "sentence in the prompt, three orders",
        "memit-stream": "the recipe that writes weights, three orders",
        "memit-kept": "MEMIT with 400 kept facts, three orders",
        "alphaedit": "AlphaEdit",
        "memit-mass": "one batch of all 60 instead",
        "memit": "MEMIT, three orders",
        "rome": "ROME, three orders",
    }
    runs = kedit.load_runs([*names, "gate-rho2", "memit-stream-rho2", "memit-rho2"], committed="smollm2-60")
    found = kedit.outcomes(runs)
    for name, rows in found.query("setting == 'as printed'").groupby("stream"):
        assert f"| {names[name]} | {share(rows.edits)} | {share(rows.untouched)} |" in README
        assert len(rows) == 1 + 2 * ("three orders" in names[name])
    long = dict(list(found.query("setting == 'as scaled'").groupby("stream")))
    gate, recipe, memit = (
        f"{share(long[n].edits)} and {share(long[n].untouched)}" for n in ("gate", "memit-stream", "memit")
    )
    assert f"the gate leaves {gate}, the recipe {recipe}, MEMIT {memit}" in README
    longer = kedit.outcomes(kedit.load_runs(["gate"], committed="smollm2")).iloc[0]
    assert f"{longer.edits:.0%} and {longer.untouched:.0%} after {longer.edits_made} edits".replace("%", " %") in README
    kept = " | ".join(f"{100 * share:.3g} %" for share in (longer.edits, longer.untouched, longer.paraphrases))
    page = (REPOSITORY / "docs" / "sequences.md").read_text(encoding="utf-8")
    assert f"| the same, {longer.edits_made} edits, order 0 | {kept} |" in page
    thousand = kedit.outcomes(kedit.load_runs(["gate-long"], committed="lab"))
    assert f"{share(thousand.edits)} of 1,000 edits and {share(thousand.untouched)} of unrelated facts" in README


@pytest.mark.parametrize(
    ("stream", "model", "share"), [("memit-rho2", "smollm2", "81 %"), ("why-pmet-left", "lab", "100 %")]
)
def test_the_readme_says_how_many_of_the_last_optimisations_are_frozen(stream, model, share):
    runs = kedit.load_runs([stream], committed=model)
    columns = ["first probability", "optimised probability"]
    made = runs[runs.metric.isin(columns)]
    pairs = made.pivot_table(index=["order", "edits"], columns="metric", values="value").groupby(level=0).tail(50)
    frozen = [did_nothing(*pair) for pair in pairs[columns].to_numpy()]
    assert f"{sum(frozen) / len(frozen):.0%}".replace("%", " %") == share and share in README


def test_the_docs_say_what_model_written_text_and_a_plateau_stop_cost():
    pages = {name: (REPOSITORY / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("texts", "speed")}
    table = pd.read_csv(FIGURES / "benchmarks_texts.csv")
    measured = table[table.quantity.str.contains("of")]
    for text, name in {"wikitext-2, other half": "WikiText-2, its other half", "written by the model": ""}.items():
        rows = measured[measured.text == text].groupby("quantity", sort=False).agg({"min": "min", "max": "max"})
        said = " | ".join(f"{r['min']:.2f} to {r['max']:.2f}" for _, r in rows.iterrows())
        assert f"| {name or text} | {said} |" in pages["texts"]
    for edits in (20, 40, 60):
        right = table[table.quantity == f"unrelated facts right after {edits} edits"].set_index("text")["min"]
        assert f"{right['wikitext-2']:.0%} and {right['written by the model']:.0%}".replace("%", " %") in pages["texts"]
    steps = pd.read_csv(FIGURES / "benchmarks_plateau.csv").set_index("setting").steps
    assert f"{steps.plateau:.1f} steps in place of {steps.exact:.1f}" in pages["speed"]


def test_the_docs_say_what_stands_in_the_way_of_the_bars():
    said = (REPOSITORY / "docs" / "speed.md").read_text(encoding="utf-8")
    table = pd.read_csv(FIGURES / "benchmarks_smollm2.csv").dropna(subset="bar").set_index("path")
    least = table["times faster"] / table["share of roofline reached"]
    memit, pmet, rome, batch = (f"{x:.1f}" for x in least)
    assert f"{memit} times as fast as the plain path for a single MEMIT edit, {pmet} for PMET, {rome} for ROME" in said
    assert f"and {batch} for the batch" in said
    for shares in (table.bar / least, table["share of roofline reached"]):
        assert "{}, {}, {} and {} %".format(*(round(100 * x) for x in shares)) in said
    alone = pd.read_csv(FIGURES / "benchmarks_products.csv").most
    assert "ratio of {:.1f} for MEMIT and {:.1f} for PMET".format(*alone) in said
    assert (alone < table.bar[:2].values).all()


def test_the_readme_says_where_the_side_effects_point():
    parts = pd.read_csv(FIGURES / "06_parts.csv").query("sequence == 'smollm2: MEMIT, as printed'")
    dead = parts[parts.right < 0.5].iloc[0]
    assert dead.alignment > dead.side_effects and "on SmolLM2 as printed mostly in one direction" in README


def test_every_paper_that_is_cited_stands_in_the_list_of_references():
    cited = [*SOURCES, *(REPOSITORY / "docs").glob("*.md"), REPOSITORY / "README.md"]
    cited += (REPOSITORY / "kedit_lib").rglob("*.py")
    number = re.compile(r"(?:arxiv\.org/abs/|arXiv )(\d{4}\.\d{5})")
    found = {one for path in cited for one in number.findall(path.read_text(encoding="utf-8"))}
    listed = set(number.findall((REPOSITORY / "docs" / "references.md").read_text(encoding="utf-8")))
    assert len(found) > 20 and found <= listed


def test_what_measuring_costs_is_what_the_stored_runs_say():
    page, shares = (REPOSITORY / "docs" / "speed.md").read_text(encoding="utf-8"), {}
    for label, *_, path in committed_files("checkpoints.parquet"):
        checks = pd.read_parquet(path)
        probes = checks[checks.metric == "seconds"].value.sum()
        edits = pd.read_parquet(str(path).replace("checkpoints", "edits")).seconds.sum()
        shares.setdefault(label, []).append((probes, probes + edits))
    whole, (probes, both) = shares["smollm2"], zip(*shares["smollm2"], strict=True)
    assert f"{sum(probes) / sum(both):.0%} of the time of SmolLM2's".replace("%", " %") in page and len(whole) > 5
    middle = {label: statistics.median(p / both for p, both in some) for label, some in shares.items()}
    assert f"each 20 (`smollm2-60`): {100 * middle['smollm2-60']:.0f} %, the median" in page
    assert 0.28 < middle["lab"] < 0.38 and "about a third on the lab" in page
