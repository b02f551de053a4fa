"""The README's table of costs: what was timed, and nothing else."""

import pandas as pd

from kedit_lib.data.config import REPOSITORY, load_profile
from kedit_lib.report import costs, stamps
from kedit_lib.streams.runner import Run


def test_seconds_are_those_that_the_stamp_was_written_with(tmp_path):
    (output := tmp_path / "a.ipynb").write_text("{}")
    stamps.write(tmp_path / "stamps" / "00_a.json", "key", output, 12.34)
    stamps.write(tmp_path / "stamps" / "01_b.json", "key", output)  # never timed
    assert costs.notebook_seconds(tmp_path / "stamps") == {"00_a": 12.3}
    assert stamps.is_current(tmp_path / "stamps" / "00_a.json", "key", output)


def test_streams_cost_their_edits_and_their_questions():
    class Found:
        profile = load_profile("smoke", batch_sizes=[1])

        def run(self, name, order):
            asked = {"metric": "seconds", "cohort": "probes", "value": [0.5, 0.25], "edits_done": [0, 2], "n": 1}
            return Run(pd.DataFrame({"seconds": [1.0, 2.0]}), pd.DataFrame(asked), {})

    assert costs.stream_seconds(Found()) == 3.75 * len(costs.streams_of(Found.profile))


def test_the_table_leaves_open_what_was_not_timed():
    table = costs.render({"smoke": {"00_a": 4.2}, "lab": {"00_a": 130, "01_b": 5}}, cores=2)
    assert table.splitlines()[1:-1] == ["| on 2 cores, CPU | smoke | lab |", "|---|---|---|", *ROWS]


ROWS = ["| 00_a | 4 s | 2 min |", "| 01_b |  | 5 s |"]


def test_readme_has_the_place_of_the_table():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert text.count(costs.BEGIN) == text.count(costs.END) == 1
