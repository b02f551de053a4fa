"""What an edit costs at least: counted by hand on a tiny shape, and never more than what is computed."""

import pytest
import roofline
from library import EDITS, METHODS
from roofline import Cost, Shape
from torch.utils.flop_counter import FlopCounterMode

import kedit_lib as kedit
from kedit_lib.editing.engine import Request
from kedit_lib.models.tokenization import Prompt

# d_model 2, d_ff 3, 4 layers of 40 entries each: keys and values 8 of them, the MLP 18 and W 6; the head 10.
SHAPE = Shape(2, 3, 4, layer=40, kv=8, mlp=18, head=10, size=2, math_size=4)
# Two contexts: 1 2 3 with the subject's last token 2, and 5 1 2 3; the KL prompt 1 2 4; a target of two tokens.
ASKED = Request((Prompt((1, 2, 3), 1), Prompt((5, 1, 2, 3), 2)), Prompt((1, 2, 4), 1), (7, 8))


def test_tokens_with_the_same_past_are_one():
    assert roofline.different([(1, 2, 3), (1, 2, 4), (2, 1)]) == 6


@pytest.mark.parametrize(("method", "mlps"), [("memit", 0), ("pmet", 3)])
def test_targets_by_hand(method, mlps):
    """1 2 3 7 and 5 1 2 3 7 are 9 tokens, and 1 2 of the KL prompt is among them; three stand in front of a subject's
    last token. The tails are 2 3 7 twice and the KL's token, 7 in all; 2 · 2 + 1 of them are read."""
    first = Cost(2 * 9 * 2 * 40, 2 * 40 * 2) + Cost(2 * 3 * (40 + 8), (40 + 8) * 2)
    step = 2 * (7 * (40 + 8) + 5 * (32 + 10) + mlps * 18)
    read = (40 + 40 + 10 + bool(mlps) * 18) * 2
    made = {"memit": kedit.MEMIT, "pmet": kedit.PMET}[method](layers=[0, 1])
    assert roofline.optimising(SHAPE, made, [ASKED], [3]) == first + Cost(step, read) * 5  # 3 evaluations, 2 gradients


def test_targets_of_the_last_layer_need_only_the_head():
    method = kedit.MEMIT(layers=[3])
    assert roofline.optimising(SHAPE, method, [ASKED], [1]) == Cost(2 * 9 * 160, 320) + Cost(2 * 5 * 10, 20)


def test_a_batch_reads_the_weights_once():
    one, two = (roofline.optimising(SHAPE, kedit.MEMIT(layers=[1]), [ASKED] * n, [2] * n) for n in (1, 2))
    assert one.bytes == two.bytes
    assert two.flops - one.flops == 3 * 2 * (7 * 48 + 5 * 42)  # the first pass is the same


def test_measuring_again_by_hand():
    """From W of layer 0 to the keys of layer 2: W, all of layer 1, keys and values of layer 2 at 1 2 and 5 1 2, and the
    rest of layer 2 but W at both 2; then, with 1 2 alone, W of layer 2 at the 2 and no more, as it is the last."""
    keys = Cost(2 * 5 * (6 + 40 + 8), (6 + 40 + 8) * 2) + Cost(2 * 2 * (40 - 8 - 6), (40 - 8 - 6) * 2)
    assert roofline.measured_again(SHAPE, [0, 2], [ASKED]) == keys + Cost(2 * 1 * 6, 6 * 2)
    assert roofline.measured_again(SHAPE, [2], [ASKED]) == Cost()
    # With layers 0 and 1 of [0, 1, 3]: the residual is measured behind layer 3, two whole layers further.
    more, less = (roofline.measured_again(SHAPE, layers, [ASKED]).flops for layers in ([0, 1, 3], [1, 3]))
    assert more - less == 2 * (5 * (6 + 8) + 2 * 26 + 2 * 2 * 40 + 6)


def test_closed_forms_by_hand():
    w = 2 * 6 * 2  # W is read and written
    three = roofline.closed_form(SHAPE, 3)
    assert three == Cost(3 * 2 * 9 + 3 * 4 * 3 + 9 + 2 * 9 * 2 + 2 * 3 * 6, 9 * 8 + w)
    on_null_space = roofline.closed_form(SHAPE, 3, rank=1)
    assert three.flops - on_null_space.flops == 3 * (2 * 9 - 4 * 3)
    assert three.bytes - on_null_space.bytes == (9 - 6) * 8
    assert roofline.closed_form(SHAPE, 3, rank=2) == on_null_space  # by I - P


def test_what_rect_and_rank_one_add_by_hand():
    assert roofline.largest_changes(SHAPE) == Cost(4 * 6, 6 * (2 * 4 + 2))
    rome = Cost(2 * 9 + 4 * 3 + 2 * 6, 9 * 8 + 2 * 6 * 2)
    assert roofline.rank_one(SHAPE, kedit.ROME(layers=[1])) == roofline.rank_one(SHAPE, kedit.PROME(layers=[1])) == rome
    assert roofline.rank_one(SHAPE, kedit.RROME(layers=[1])) == rome + Cost(2 * 6)
    assert roofline.rank_one(SHAPE, kedit.ROME(layers=[1], mom2_adjustment=False)) == Cost(4 * 3 + 2 * 6, 2 * 6 * 2)


# Several layers: what lies between two edited ones counts too.
EDITED = [METHODS[name] for name in ("MEMIT", "PMET", "AlphaEdit", "RECT")] + [kedit.MEMIT(layers=[1, 3])]
EDITED = [METHODS["RROME"], *(pytest.param(method, marks=pytest.mark.slow) for method in EDITED)]


@pytest.mark.parametrize("method", EDITED, ids=lambda m: f"{m.name} {m.layers}")
def test_the_floor_lies_below_what_is_computed(paths, model, method):
    """Operations counted by torch while the library edits, and while the plain path does."""
    both, edits = paths(method), EDITS[:1]
    both.ours(edits)
    with FlopCounterMode(display=False) as ours:
        _, outcome = both.ours(edits)
    with FlopCounterMode(display=False) as plain:
        both.plain(edits)
    steps = [outcome.targets[0].steps]
    least = roofline.edit_cost(method, both.call(edits), steps).flops - unseen(method, Shape.of(model))
    assert least < ours.get_total_flops() < plain.get_total_flops()
    assert least > 0.3 * ours.get_total_flops()


def unseen(method, shape):
    """What torch does not count of the least: triangular solves, outer products, and what is done entry by entry."""
    if isinstance(method, kedit.ROME):
        return roofline.rank_one(shape, method).flops
    chosen = roofline.largest_changes(shape).flops if isinstance(method, kedit.RECT) else 0
    return (2 * shape.d_ff**2 + chosen) * len(method.layers)
