"""What a guard cannot ask is one line."""

from library import refused
from transformers import T5Config, T5ForConditionalGeneration

import kedit_lib as kedit
from kedit_lib.streams.guard import CollapseGuard


def test_what_cannot_be_asked_is_one_line():
    lab = kedit.load_model("lab-small")
    edits = kedit.load_edits("lab", model=lab, limit=40)
    guard, hf = CollapseGuard(edits), lab.hf
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=100, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    for model, tokenizer, said in [
        *[(hf, wrong, f"guard: tokenizer = {wrong!r}") for wrong in ("gpt2", None)],
        *[(wrong, lab.tokenizer, f"a {type(wrong).__name__} is not a causal") for wrong in (hf.model, t5, "lab")],
    ]:
        refused(lambda model=model, tokenizer=tokenizer: guard.check(model, tokenizer=tokenizer), "guard: ", said)
    guard.check(hf, 10, lab.tokenizer)
    for count in ("a", -5, 9, 10.5):
        refused(lambda count=count: guard.check(lab, count), f"guard: edits = {count!r}", "10 or more")
    for found in (5, [5], [{"value": 1.0}]):
        asking = CollapseGuard(edits, probes=[lambda model, made, found=found: found])
        refused(lambda asking=asking: asking.check(lab), "guard: a probe failed (")
