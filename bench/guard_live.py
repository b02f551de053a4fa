"""ROME, one edit at a time, under the guard as shipped, stopped at its alarm; notebook 11 tells what it printed.

python bench/guard_live.py [smollm2-60]      figures/data/<model>.rome.order0.<key>.guarded.json, minutes
"""

import sys

import kedit_lib as kedit

CANARIES = 160  # known facts that the guard draws its looks from


def guarded(bench) -> dict:
    edits, method = bench.edits_of("rome"), bench.method("rome")
    facts = bench.facts.strangers(edits, CANARIES, seed=1)
    guard = kedit.CollapseGuard([(prompt.replace("{}", s), answer) for prompt, s, answer in facts], action="stop")
    given = bench.model, edits, method
    run = kedit.run_stream(*given, **bench.inputs(method), probes=[], guard=guard, progress=False)
    p, seconds = run.edits.probability_last.tail(10).median(), run.edits.seconds.sum()
    return {"said": str(guard), "p": float(p), "edits": len(run.edits), "seconds": float(seconds)}


if __name__ == "__main__":
    bench = kedit.Bench(*sys.argv[1:2] or ["smollm2-60"], live_orders=[0])
    print(bench.measured("rome", 0, "guarded.json", lambda: guarded(bench), commit=True))
