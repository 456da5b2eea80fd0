"""Walking a tape: what is kept, and the peaks of backward, in numbers of one digit."""

from planner.memory.tape import Branch, Checkpoint, Op, Saved, backward_peak, saved_by_tensor, saved_bytes


def test_a_storage_kept_twice_counts_once():
    """Two operations that keep the same storage share its bytes; the larger view decides; empty ones are not listed."""
    tape = (Op("a", saves=(Saved("x", 3),)), Op("b", saves=(Saved("x", 5), Saved("y", 2), Saved("z", 0))))
    assert saved_by_tensor(tape) == {"x": 5, "y": 2}
    assert saved_bytes(tape) == 7


def test_backward_of_two_operations():
    """b: gradients 4 + 8 + 5 = 17 alive, then y (6) and the output's gradient go; a: 8 - 6 + 10 = 12."""
    tape = (
        Op("a", output=9, saves=(Saved("x", 3),), grad_input=10),
        Op("b", output=9, saves=(Saved("y", 6),), grad_input=8, weight_grad=5),
    )
    assert backward_peak(tape, 4) == 17


def test_the_peak_may_be_at_the_first_operation():
    """With a larger input gradient the last step of backward is the peak: 8 - 6 + 20."""
    tape = (Op("a", grad_input=20), Op("b", saves=(Saved("y", 6),), grad_input=8))
    assert backward_peak(tape, 4) == 22


def test_a_view_passes_the_gradient_on():
    """An operation without a gradient of its own adds nothing."""
    assert backward_peak((Op("view"), Op("view")), 4) == 4


def test_shared_storages_are_released_by_their_last_user():
    """x is kept by both: it stays alive until a has run, so a's gradient comes on top of it."""
    shared = (Op("a", saves=(Saved("x", 6),), grad_input=5), Op("b", saves=(Saved("x", 6),), grad_input=5))
    alone = (Op("a", grad_input=5), Op("b", saves=(Saved("x", 6),), grad_input=5))
    assert backward_peak(shared, 4) == 10  # 5 (of b) + 5 (of a), x still there
    assert backward_peak(alone, 4) == 9  # 4 + 5 at b; at a x has gone: 5 - 6 + 5


def test_a_residual_branch_holds_the_gradient_of_the_sum():
    """x + f(x): 4 of the sum, 4 and 4 inside f, then 4 of f's input and 4 of the new sum beside it."""
    inside = (Op("a", grad_input=4), Op("b", grad_input=4))
    assert backward_peak((Branch(inside, 4),), 4) == 4 + 4 + 4
    assert backward_peak(inside, 4) == 8


def test_the_sum_of_a_branch_is_a_tensor_of_its_own():
    """One operation in f: the sum's gradient 4, its input's gradient 4, and both added up in a third 4."""
    assert backward_peak((Branch((Op("a", grad_input=4),), 4),), 4) == 4 + 4 + 4


def test_a_checkpoint_rebuilds_before_it_walks_back():
    """Kept is the input; in backward y (6) and the rebuilt output (5) stand beside the gradients 4 + 8."""
    inside = (
        Op("a", output=6, output_key="y", saves=(Saved("x", 3),), grad_input=2),
        Op("b", output=5, saves=(Saved("y", 6),), grad_input=8),
    )
    tape = (Checkpoint("c", (Saved("x", 3),), inside, output=5),)
    assert saved_bytes(tape) == 3
    assert backward_peak(tape, 4) == 6 + 5 + 4 + 8


def test_weight_gradients_die_when_accumulated():
    """They count at their own operation, not at the next one."""
    tape = (Op("a", grad_input=1), Op("b", grad_input=1, weight_grad=10))
    assert backward_peak(tape, 1) == 1 + 1 + 10
    assert backward_peak((Op("a", grad_input=1, weight_grad=10), Op("b", grad_input=1, weight_grad=10)), 1) == 12


def test_temporaries_count_for_their_moment():
    """A backward temporary adds to its own operation alone."""
    assert backward_peak((Op("a", grad_input=1, backward_temp=7), Op("b", grad_input=1)), 1) == 1 + 1 + 7
