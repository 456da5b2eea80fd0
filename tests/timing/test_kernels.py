"""Single kernels: roofline, tiles, attention."""

import pytest

from planner.hardware import parse_gpus
from planner.timing.efficiency import efficiency
from planner.timing.kernels import Device, attended_pairs, flash_seconds, gemm_seconds, memory_seconds


@pytest.fixture(scope="module")
def h100() -> Device:
    cluster = parse_gpus("8xH100-80G")
    return Device(cluster.card, efficiency(cluster))


def test_a_large_product_approaches_the_sustained_rate_and_never_exceeds_it(h100):
    """A product of 16384^3 runs within 5 % of the fraction of the data sheet that the architecture sustains."""
    n = 16384
    rate = 2 * n**3 / gemm_seconds(h100, n, n, n, "bf16")
    sustained = h100.card.flops["bf16"] * h100.efficiency.gemm["bf16"] * h100.sustained
    assert 0.95 * sustained < rate < sustained


@pytest.mark.parametrize("small", [{"m": 64}, {"k": 64}, {"n": 48}])
def test_small_sides_cost_more_for_each_operation(h100, small):
    """A product that is thin in any side is less efficient than a square one."""
    shape = {"m": 8192, "n": 8192, "k": 8192}
    thin = shape | small

    def seconds_per_flop(s):
        return gemm_seconds(h100, s["m"], s["n"], s["k"], "bf16") / (s["m"] * s["n"] * s["k"])

    assert seconds_per_flop(thin) > 1.3 * seconds_per_flop(shape)


def test_a_few_tiles_beyond_a_wave_cost_much_more_than_their_share(h100):
    """140 tiles on 132 multiprocessors are 6 % more work than 132 and take over 25 % longer (wave quantisation)."""
    one_wave, more = (gemm_seconds(h100, 256, 128 * tiles, 4096, "bf16") for tiles in (132, 140))
    assert more > 1.25 * one_wave


def test_halves_of_a_product_take_as_long_as_the_whole_or_longer(h100):
    """Splitting columns over two devices never more than halves the time."""
    whole = gemm_seconds(h100, 4096, 8192, 8192, "bf16")
    assert gemm_seconds(h100, 4096, 4096, 8192, "bf16") >= whole / 2 * 0.95


def test_fp8_is_faster_but_less_than_twice(h100):
    """fp8 doubles the peak; its tiles' fixed work does not halve."""
    n = 8192
    gain = gemm_seconds(h100, n, n, n, "bf16") / gemm_seconds(h100, n, n, n, "fp8")
    assert 1.5 < gain < 2


def test_accumulating_into_fp32_is_bound_by_memory_for_few_rows(h100):
    """A weight gradient of 16 tokens reads and writes 8 bytes for each weight, and takes that long."""
    seconds = gemm_seconds(h100, 8192, 8192, 16, "bf16", output_bytes=8)
    assert seconds == pytest.approx(memory_seconds(h100, 8 * 8192**2), rel=0.01)


def test_unaligned_batched_products_leave_the_tensor_cores(h100):
    """Scores of 108-wide heads take several times those of 112-wide ones: rows of 216 bytes are no multiple of 16."""
    unaligned, aligned = (gemm_seconds(h100, 2048, 2048, k, "bf16", 2, 64, strided=True) for k in (108, 112))
    assert unaligned > 3 * aligned


def test_one_batched_product_is_one_launch(h100):
    """A thousand small equal products are bound by their work, not by a launch for each as an expert's are."""
    grouped, strided = (gemm_seconds(h100, 256, 256, 64, "bf16", 2, 1024, strided=s) for s in (False, True))
    assert grouped >= 1024 * h100.efficiency.expert_launch_seconds > 5 * strided


def test_each_product_of_a_group_costs_its_launch_beside_its_work(h100):
    """Experts are issued one by one: 64 of them take 64 launches longer than one kernel over all of them."""
    grouped, strided = (gemm_seconds(h100, 512, 4096, 4096, "bf16", 2, 64, strided=s) for s in (False, True))
    assert grouped - strided == pytest.approx(64 * h100.efficiency.expert_launch_seconds)


def test_operands_in_tf32_are_four_bytes_wide(h100):
    """A product of one row takes as long as its weights take to be read in fp32."""
    seconds = gemm_seconds(h100, 1, 8192, 8192, "tf32", 4)
    assert seconds == pytest.approx(memory_seconds(h100, 4 * 8192 * 8192), rel=0.01)


def test_dropout_costs_flash_attention_little(h100):
    """Random numbers drawn in the kernel cost 5 %, where stored scores would be read and written again."""
    plain, dropped = (flash_seconds(h100, 1, 4096, 32, 128, 128, None, 1, False, False, d) for d in (False, True))
    assert 1.04 < dropped / plain <= 1.05


def test_attended_pairs_of_causal_and_windowed_sequences():
    """Half the square, and with a window w: s w - w^2 / 2."""
    assert attended_pairs(4096, None) == 4096**2 / 2
    assert attended_pairs(4096, 8192) == 4096**2 / 2
    assert attended_pairs(4096, 128) == 4096 * 128 - 128**2 / 2


@pytest.mark.parametrize(
    ("width", "tokens", "flash3", "cudnn"),
    [
        (64, 2048, 371, 334), (64, 4096, 420, 363), (64, 8192, 460, 379), (64, 16384, 473, 388),
        (128, 2048, 521, 484), (128, 4096, 579, 518), (128, 8192, 602, 529), (128, 16384, 616, 539),
    ],
)  # fmt: skip
def test_causal_attention_on_hopper_reaches_what_was_measured(h100, width, tokens, flash3, cudnn):
    """Within 7 % of the mean of FlashAttention-3 and cuDNN, forward, TFLOP/s (arXiv:2407.08608, figure 5): 16,384
    tokens in all, heads of 64 and 128 in a width of 2,048."""
    batch, heads = 16384 // tokens, 2048 // width
    seconds = flash_seconds(h100, batch, tokens, heads, width, width, None, 1, False)
    reached = 4 * batch * heads * width * tokens**2 / 2 / seconds / 1e12
    assert reached == pytest.approx((flash3 + cudnn) / 2, rel=0.07)


def test_narrow_heads_lose_less_where_exponentials_are_cheaper(h100):
    """A multiprocessor of an A100 has half the tensor rate to the same exponentials: (1 + x) / (1 + 2 x)."""
    cluster = parse_gpus("8xA100-80G")
    for card, x in ((h100, 0.5), (Device(cluster.card, efficiency(cluster)), 0.25)):
        wide, narrow = (
            flash_seconds(card, 1, 16384, heads, width, width, None, 1, False) - card.efficiency.kernel_seconds
            for heads, width in ((16, 128), (32, 64))
        )
        assert wide / narrow == pytest.approx((1 + x) / (1 + 2 * x), rel=0.01)


def test_flash_attention_backward_is_two_to_four_times_forward(h100):
    """Five products against two, at a lower fraction of the peak."""
    key = (h100, 1, 8192, 32, 128, 128, None, 1)
    ratio = flash_seconds(*key, True) / flash_seconds(*key, False)
    assert 2.5 < ratio < 4


def test_context_parallel_attention_divides_the_work_and_loses_efficiency(h100):
    """Four ranks each do a quarter, on shorter parts and so a little slower."""
    one = flash_seconds(h100, 1, 16384, 32, 128, 128, None, 1, False)
    four = flash_seconds(h100, 1, 16384, 32, 128, 128, None, 4, False)
    assert one / 4 < four < 1.2 * one / 4
