"""What a run costs: `kedit costs` writes the README's table from the last runs on this machine.

Seconds of a notebook are those of its process (`kedit_lib.report.stamps`). Its streams run before it and only once:
their seconds of editing and of asking are summed over the streams of the profile's live orders.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..data.config import REPOSITORY
from ..errors import KeditError
from ..streams.bench import Bench
from ..streams.named_streams import streams_of
from .readme import put

BEGIN, END = "<!-- costs: written by kedit costs -->", "<!-- end of costs -->"
PROFILES = ("smoke", "lab")
STREAMS = "their streams of edits, one after the other"


def notebook_seconds(stamps: Path) -> dict[str, float]:
    """{notebook: seconds of its last execution} of one run's stamps."""
    found = {path.stem: json.loads(path.read_text()).get("seconds") for path in sorted(stamps.glob("*.json"))}
    return {stem: seconds for stem, seconds in found.items() if seconds}


def stream_seconds(bench: Bench) -> float:
    """Seconds of editing and asking in the profile's live streams. Those that are not finished are run."""
    runs = [bench.run(name, order) for name in streams_of(bench.profile) for order in bench.profile.live_orders]
    return sum(run.edits.seconds.sum() + run.curve("seconds", "probes").sum() for run in runs)


def render(seconds: dict[str, dict[str, float]], cores: int) -> str:
    """The block for the README, markers included. seconds: {profile: {notebook: seconds}}."""
    rows = list(dict.fromkeys(name for column in seconds.values() for name in column))
    lines = [f"| on {cores} cores, CPU | {' | '.join(seconds)} |", "|---|" + "---|" * len(seconds)]
    for name in rows:
        shown = (_duration(column[name]) if name in column else "" for column in seconds.values())
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join([BEGIN, *lines, END])


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def rewrite() -> None:
    """Write the table into README.md. KeditError when a profile was never timed here."""
    seconds = {}
    for profile in PROFILES:
        seconds[profile] = notebook_seconds(REPOSITORY / ".stamps" / profile)
        if not seconds[profile]:
            make = "make smoke" if profile == "smoke" else "make reproduce"
            raise KeditError(f"profile {profile}: no run has been timed here; run '{make}' first")
        seconds[profile][STREAMS] = stream_seconds(Bench(profile, progress=False))
    put(REPOSITORY / "README.md", [render(seconds, os.cpu_count() or 1)])
