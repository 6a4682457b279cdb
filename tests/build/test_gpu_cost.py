"""The cost sheet holds: what the CUDA kernels do has not changed unseen, and what was promised of them is met.

``python tests/support/gpu_cost/sheet.py --renew`` writes the sheet anew where a change is meant; its difference is then
part of the review.
"""

import json

import pytest
from gpu_cost import machine_code, sheet, table
from gpu_cost.model import GPUS, floors, resident


@pytest.fixture(scope="module")
def stored():
    return json.loads(sheet.SHEET.read_text())


@pytest.fixture(scope="module")
def counted():
    return sheet.counts(sheet.build(sheet.ROOT / "build" / "gpu_cost"))


@pytest.mark.cuda_on_host
def test_counts_are_those_of_the_sheet(stored, counted):
    changed = sheet.differences(stored["cases"], counted)
    assert not changed, "renew the sheet if this is meant:\n" + "\n".join(changed)


@pytest.mark.cuda_on_host
def test_every_kernel_is_in_a_case_or_is_known_to_be_left_out(counted):
    """A new kernel has to be priced."""
    written = set()
    for source in sheet.ROOT.glob("kernels/cuda/**/*.cu"):
        written |= set(sheet.kernel_names(source.read_text()))
    priced = {name.split("<")[0] for name in sheet.kernels_of(counted)}
    assert written - priced == {
        "softmax_cross_entropy_totals_kernel",  # of weighted classes, smoothed
        "batch_norm_given_kernel",  # inference
        "batch_norm_update_kernel",  # running statistics
        "conv2d_far_weight_kernel",  # kernels dilated over thousands of pixels
    }


def test_predictions_follow_from_counts_and_registers(stored):
    again = json.loads(json.dumps(sheet.predictions(stored["cases"], stored["kernels"])))
    assert stored["predicted"] == again


def test_readme_has_the_predictions(stored):
    assert table.shown() == table.text(stored)


def seconds(stored, case, *, without_launches=True, kernel=""):
    """What the launches of a case whose kernel's name holds ``kernel`` take on an H200, in microseconds."""
    gpu, total = GPUS["H200"], 0.0
    for launch in stored["cases"][case]["launches"]:
        if kernel in launch["kernel"]:
            used = stored["kernels"][launch["kernel"]][gpu.architecture]
            total += max(floors(gpu, launch, used).values()) + (0 if without_launches else gpu.launch)
    return 1e6 * total


@pytest.mark.parametrize(
    "case,kernel",
    [
        ("cross_entropy 32768x4096 bf16 fwd", "reduce"),
        ("cross_entropy 131072x1000 bf16 fwd", "reduce"),
        ("conv2d 1@28 5x5/1 -> 6 f32 NCHW bias", ""),
        ("conv2d 64@24 3x3/1 -> 64 bf16 channels_last bias", ""),
        ("conv2d 1@28 5x5/1 -> 6 f32 NCHW wgrad", "weight_sum"),
        ("conv2d 64@56 1x1/1 -> 256 (x4) bf16 channels_last wgrad", "weight_sum"),
    ],
)
def test_tails_are_short(stored, case, kernel):
    """Work of a few thousand numbers takes microseconds, not a serial chain of waits."""
    expected = 20 if "64@24" in case or "64@56" in case else 5
    assert 0 < seconds(stored, case, kernel=kernel) <= expected


def test_lenets_convolutions_are_short(stored):
    """A training step at 256 images may take 200 microseconds; some 25 launches of torch's are 60 of them."""
    layers = {"1@28 5x5/1 -> 6": ("fwd", "wgrad", "bias"), "6@14 5x5/1 -> 16": ("fwd", "dgrad", "wgrad", "bias")}
    cases = [f"conv2d {layer} f32 NCHW {which}" for layer, passes in layers.items() for which in passes]
    assert sum(stored["predicted"][case]["H200"][0] for case in cases) <= 100


@pytest.mark.parametrize("layout", ["NCHW", "channels_last"])
def test_depthwise_weight_gradient_reads_each_tensor_once(stored, layout):
    launch = stored["cases"][f"conv2d 128@56 3x3/1 -> 128, 128 groups f32 {layout} wgrad"]["launches"][0]
    for tensor in ("input load", "output load"):
        counts = launch["tensors"][tensor]
        assert counts["sectors"] <= 1.5 * counts["different"]


def test_instructions_are_those_of_the_loop_where_the_accesses_are():
    text = """
        /*0000*/ LDG.E R0, [R2] ;
        /*0010*/ STS [R4], R0 ;
        /*0020*/ @!P0 BRA 0x0060 ;
        /*0030*/ LDS R1, [R4] ;
        /*0040*/ @P1 BRA 0x0060 ;
        /*0050*/ LDS.128 R8, [R4+0x10] ;
        /*0060*/ FFMA R9, R9, R1, R8 ;
        /*0070*/ @P2 BRA 0x0030 ;
        /*0080*/ IADD3 R4, R4, 0x1, RZ ;
        /*0090*/ @P3 BRA 0x0000 ;
        /*00a0*/ @P4 EXIT ;
        /*00b0*/ STG.E [R2], R9 ;
        /*00c0*/ EXIT ;
        /*00d0*/ BRA 0x00d0 ;
    """
    code = machine_code.instructions(text)
    assert [name for _, _, name, _ in code][:3] == ["LDG.E", "STS", "BRA"]
    assert machine_code.per_access(code) == {"shared": 2.5}  # the inner loop's five instructions for two loads
    straight = [line for line in code if line[2] != "BRA"]
    assert machine_code.per_access(straight) == {"shared": 3.0}  # no loop: nine, to the last EXIT


def test_the_model_knows_waves_and_occupancy():
    gpu = GPUS["H200"]
    assert resident(gpu, 256, 32, 0) == 8  # threads
    assert resident(gpu, 256, 128, 0) == 2  # registers
    assert resident(gpu, 256, 32, 100 << 10) == 2  # shared memory
    launch = {
        "blocks": 8 * 132 + 1, "threads": 256, "tensors": {}, "chain": 3.0, "wavefronts": 0, "shared": 100, "matrix": 0,
        "special": 0,
    }  # fmt: skip
    used = {"registers": 32, "bytes": 0, "shared": 20.0}
    assert floors(gpu, launch, used)["latency"] == pytest.approx(2 * 3 * gpu.latency)
    launch["tensors"] = {"x load": {"requests": 1, "sectors": 400, "ideal": 100, "different": 100}}
    terms = floors(gpu, launch, used)
    assert terms["issue"] == pytest.approx(100 * 20 / (4 * 132 * gpu.hertz))
    assert terms["memory"] == pytest.approx(3200 / gpu.memory)
    assert terms["cache"] == pytest.approx(12800 / gpu.cache)
