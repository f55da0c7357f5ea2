"""The cpu backend: against the reference over random cases, its memory, its compiler."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from rnn_cells import LSTM, RNN, LSTMCell, scan
from rnn_cells.backends import building, choose, cpu, reference
from tests.rnn_cells.conftest import LAYERS

ROOT = Path(__file__).parents[2]
compiled = pytest.mark.skipif(cpu._library()[1] is not None, reason=f"cpu backend: {cpu._library()[1]}")


@pytest.fixture
def threads():
    """Sets torch's threads, for this test alone."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def fresh_library(monkeypatch):
    """Forgets the library that this process has loaded, and what the test makes of it afterwards."""
    cpu._library.cache_clear()
    yield monkeypatch
    cpu._library.cache_clear()


def results(layer, x, state, lengths):
    """Outputs, final states and all gradients."""
    x, *state = (tensor.detach().clone().requires_grad_() for tensor in (x, *state))
    output, final = layer(x, tuple(state) if len(state) > 1 else state[0], lengths)
    final = final if isinstance(final, tuple) else (final,)
    dice = torch.Generator().manual_seed(2)
    parts = [(r * torch.randn(r.shape, generator=dice, dtype=r.dtype)).sum() for r in (output, *final)]
    loss = torch.stack(parts).sum()
    return [output, *final, *torch.autograd.grad(loss, [x, *state, *layer.parameters()])]


@compiled
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("seed", range(40))
def test_random_cases_match_the_reference(seed, dtype, threads):
    dice = random.Random(seed)
    threads(dice.choice([1, 2, 4]))
    steps, batch = dice.choice([1, 2, 7, 33]), dice.choice([1, 2, 3, 7, 29])
    inputs, hidden = dice.choice([1, 2, 5, 17, 40, 131]), dice.choice([1, 3, 8, 19, 64, 130])
    options = {"bidirectional": dice.random() < 0.5, "bias": dice.random() < 0.7, "num_layers": dice.choice([1, 2])}
    torch.manual_seed(seed)
    layer = LAYERS[dice.choice(list(LAYERS))](inputs, hidden, **options, backend="cpu").to(dtype)
    lengths = dice.choice([None, torch.randint(0, steps + 1, (batch,))])
    wide = torch.randn(batch, steps, 2 * inputs, dtype=dtype)
    x = wide[..., ::2] if dice.random() < 0.3 else wide[..., :inputs]
    state = [torch.randn(len(layer.cells), batch, hidden, dtype=dtype) for _ in layer.cells[0].state_names]
    ours = results(layer, x, state, lengths)
    layer.backend = "reference"
    expected = results(layer, x, state, lengths)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    for mine, other in zip(ours, expected, strict=True):
        scale = max(1.0, other.abs().max().item() if other.numel() else 1.0)
        assert (mine - other).abs().max() <= tolerance * scale


@compiled
def test_the_same_call_gives_the_same_bits(layer_type, threads):
    threads(2)
    layer = layer_type(19, 33, bidirectional=True, backend="cpu")
    x, state = torch.randn(9, 21, 19), [torch.randn(2, 9, 33) for _ in layer.cells[0].state_names]
    first = results(layer, x, state, [21, 3, 0, 8, 8, 1, 20, 21, 5])
    for _ in range(5):
        again = results(layer, x, state, [21, 3, 0, 8, 8, 1, 20, 21, 5])
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@compiled
def test_the_number_of_threads_changes_no_bit(layer_type, threads):
    layer = layer_type(19, 33, num_layers=2, bidirectional=True, backend="cpu")
    x, state = torch.randn(9, 150, 19), [torch.randn(4, 9, 33) for _ in layer.cells[0].state_names]
    found = []
    for number in (1, 2, 4):
        threads(number)
        found.append(results(layer, x, state, [150, 3, 0, 8, 80, 1, 20, 150, 5]))
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@compiled
def test_graphs_that_wait_for_their_backward_do_not_share_memory():
    layer = LSTM(4, 8, backend="cpu").double()
    batches = [torch.randn(3, 5, 4, dtype=torch.float64) for _ in range(3)]

    def gradients(output, **options):
        return torch.autograd.grad(output.square().sum(), list(layer.parameters()), **options)

    expected = [gradients(layer(x)[0]) for x in batches]
    outputs = [layer(x)[0] for x in batches]
    twice = gradients(outputs[1], retain_graph=True)
    found = [gradients(output) for output in outputs]
    assert all(torch.equal(a, b) for a, b in zip(twice, expected[1], strict=True))
    for of_batch, of_other in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(of_batch, of_other, strict=True))


@compiled
def test_a_second_derivative_is_refused_not_left_out():
    layer, x = LSTM(3, 4, backend="cpu"), torch.randn(2, 5, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="no second derivatives: use backend='reference'"):
        torch.autograd.grad(layer(x)[0].sum(), x, create_graph=True)
    layer.backend = "reference"
    (slope,) = torch.autograd.grad(layer(x)[0].sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert layer.cells[0].weight_hh.grad.abs().sum() > 0


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is:DeprecationWarning")  # torch's own, in forward mode
def test_what_looks_into_the_scan_gets_the_reference():
    layer, x, tangent = LSTM(3, 4), torch.randn(5, 2, 3), torch.randn(5, 2, 3)
    layer.batch_first = False
    assert torch.func.vmap(layer)(x[None])[0].shape == (1, 5, 2, 4)
    assert layer.chosen_backend == "reference"
    layer.backend = "reference"
    expected = torch.func.jvp(lambda x: layer(x)[0], (x,), (tangent,))
    layer.backend = "auto"
    torch.testing.assert_close(torch.func.jvp(lambda x: layer(x)[0], (x,), (tangent,)), expected)
    assert layer.chosen_backend == "reference"


def squashed(x):
    """What the cpu backend makes of numbers: their tanh and their sigmoid."""
    rnn, lstm = RNN(1, 1, bias=False, backend="cpu").to(x.dtype), LSTM(1, 1, bias=False, backend="cpu").to(x.dtype)
    with torch.no_grad():
        for parameter in (*rnn.parameters(), *lstm.parameters()):
            parameter.zero_()
        rnn.cells[0].weight_ih.fill_(1)
        lstm.cells[0].weight_ih[1] = 1  # c = sigmoid(x) * 1 + 1/2 * tanh(0)
        tanh, _ = rnn(x[:, None, None])
        ones = torch.ones(1, len(x), 1, dtype=x.dtype)
        _, (_, sigmoid) = lstm(x[:, None, None], (torch.zeros_like(ones), ones))
    return tanh.flatten(), sigmoid.flatten()


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tanh_and_sigmoid_keep_their_range_their_order_and_their_smallest_values(dtype):
    x = torch.cat([torch.linspace(-86, 86, 40_001), torch.logspace(-30, 0, 2001), -torch.logspace(-30, 0, 2001)])
    x = x.to(dtype).sort().values
    tanh, sigmoid = squashed(x)
    torch.testing.assert_close(tanh.double(), x.double().tanh(), rtol=4e-7, atol=0)
    torch.testing.assert_close(sigmoid.double(), x.double().sigmoid(), rtol=4e-7, atol=0)
    assert tanh.abs().max() == 1
    assert sigmoid.max() == 1
    assert tanh.diff().min() >= 0
    assert sigmoid.diff().min() >= 0


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tanh_and_sigmoid_of_what_is_not_finite_are_those_of_torch(dtype):
    inf, nan, largest = float("inf"), float("nan"), torch.finfo(dtype).max
    x = torch.tensor([-inf, -largest, -800, -20, 0, 20, 800, largest, inf, nan], dtype=dtype)
    tanh, sigmoid = squashed(x)
    torch.testing.assert_close(tanh, x.tanh(), equal_nan=True)
    finite = x.isfinite()  # infinity times another gate's weight of 0 is NaN
    torch.testing.assert_close(sigmoid[finite], x[finite].sigmoid())
    assert sigmoid[finite][[0, -1]].tolist() == [0, 1]
    for value in (-inf, inf, nan):
        cell = LSTMCell(1, 1).to(dtype)
        for parameter in cell.parameters():
            nn.init.zeros_(parameter)
        nn.init.constant_(cell.get_parameter("bias_ih").detach()[1:2], value)
        _, (_, c) = scan(cell, x.new_zeros(1, 1, 1), (x.new_zeros(1, 1), x.new_ones(1, 1)), backend="cpu")
        torch.testing.assert_close(c[0], torch.tensor([value], dtype=dtype).sigmoid(), equal_nan=True, rtol=0, atol=0)


@compiled
def test_saturated_units_have_no_gradient(layer_type):
    layer = layer_type(1, 8, bias=False, backend="cpu")
    with torch.no_grad():
        layer.cells[0].weight_ih.abs_().add_(1)
    x = torch.full((2, 3, 1), 100.0)
    found = torch.autograd.grad(layer(x)[0].mean(), list(layer.parameters()))
    layer.backend = "reference"
    wanted = torch.autograd.grad(layer(x)[0].mean(), list(layer.parameters()))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-30)


OUT_OF_MEMORY = """
import resource, torch
from rnn_cells import GRU
layer = GRU(8, 1500, backend="cpu")
layer(torch.zeros(2, 3, 8))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (20 << 20), -1))
try:
    layer(torch.zeros(2, 3, 8))
except MemoryError as error:
    print(error)
"""


@compiled
def test_a_lack_of_memory_is_an_exception_and_no_crash():
    result = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "scan_forward of (3, 2, 8) with hidden_size=1500" in result.stdout


@compiled
@pytest.mark.parametrize(
    ("x", "state", "lengths", "message"),
    [
        (torch.zeros(5, 2, 4), torch.zeros(1, 8), None, "h must be"),
        (torch.zeros(5, 2, 4), torch.zeros(2, 8, dtype=torch.float64), None, "h must be"),
        (torch.zeros(5, 2, 3), torch.zeros(2, 8), None, "input must be"),
        (torch.zeros(5, 2, 4), torch.zeros(2, 8), torch.tensor([6, 1]), "lengths must lie"),
        (torch.zeros(5, 2, 4), torch.zeros(2, 8), torch.tensor([5]), "lengths must be"),
        (torch.zeros(5, 2, 4), torch.zeros(2, 8), torch.tensor([1.5, 1.0]), "lengths must be"),
        (torch.zeros(5, 2, 4, dtype=torch.float64), torch.zeros(2, 8, dtype=torch.float64), None, "the weights are"),
    ],
    ids=["state's batch", "state's type", "inputs", "too long", "too few lengths", "no integers", "weights' type"],
)
def test_tensors_that_do_not_fit_never_reach_native_code(x, state, lengths, message):
    with pytest.raises(ValueError, match=message):
        scan(LSTMCell(4, 8), x, (state, torch.zeros_like(state)), lengths, backend="cpu")


WEIGHTS = {
    "another width": ("weight_ih", torch.zeros(32, 5)),
    "another height": ("weight_hh", torch.zeros(24, 8)),
    "a bias that is too short": ("bias_hh", torch.zeros(8)),
    "another type": ("bias_ih", torch.zeros(32, dtype=torch.float64)),
    "one bias": ("bias_hh", None),
    "the other bias": ("bias_ih", None),
}


@compiled
@pytest.mark.parametrize(("name", "weight"), WEIGHTS.values(), ids=WEIGHTS)
def test_weights_that_do_not_fit_never_reach_native_code(name, weight):
    cell, x = LSTMCell(4, 8), torch.randn(5, 2, 4)
    setattr(cell, name, weight if weight is None else torch.nn.Parameter(weight))
    with pytest.raises(ValueError, match=rf"{name} must be|the weights are torch.float64"):
        scan(cell, x, backend="cpu")
    if weight is None:
        assert torch.equal(scan(cell, x)[0], scan(cell, x, backend="reference")[0])


@compiled
def test_weights_of_the_other_direction_that_do_not_fit_never_reach_native_code():
    layer = LSTM(4, 8, bidirectional=True, backend="cpu")
    layer.cells[1].weight_hh = torch.nn.Parameter(torch.zeros(24, 8))
    with pytest.raises(ValueError, match=r"weight_hh must be \(32, 8\), got \(24, 8\)"):
        layer(torch.randn(2, 5, 4))


@compiled
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
def test_lengths_that_change_behind_the_forward_change_no_gradient(layer_type, dtype):
    layer, x = layer_type(4, 8, bidirectional=True, backend="cpu"), torch.randn(2, 5, 4)
    lengths = torch.tensor([4, 2], dtype=dtype)
    expected = torch.autograd.grad(layer(x, lengths=lengths)[0].square().sum(), [*layer.parameters()])
    output, _ = layer(x, lengths=lengths)
    lengths += 1
    found = torch.autograd.grad(output.square().sum(), [*layer.parameters()])
    assert all(torch.equal(mine, other) for mine, other in zip(found, expected, strict=True))


def test_without_a_compiler_auto_runs_the_reference_and_says_what_is_missing(fresh_library, tmp_path, caplog):
    fresh_library.setenv("PATH", str(tmp_path))
    fresh_library.delenv("CXX", raising=False)
    caplog.set_level("INFO", logger="rnn_cells")
    x = torch.zeros(3, 2, 4)
    assert choose("auto", [LSTMCell(4, 8)], x) is reference
    if sys.platform == "linux":
        assert "no C++ compiler (c++, g++, clang++); install one, such as Debian's package g++" in caplog.text
    with pytest.raises(ValueError, match="can't run LSTMCell here"):
        choose("cpu", [LSTMCell(4, 8)], x)


@compiled
def test_a_compiler_that_cannot_be_read_is_a_reason_and_no_crash(fresh_library):
    fresh_library.setenv("CXX", "g++ '")
    assert "CXX=g++ ': No closing quotation" in (cpu.why_not(LSTMCell(4, 8), torch.zeros(3, 2, 4)) or "")


@compiled
@pytest.mark.parametrize("cache", ["/dev/null", "/proc"])
def test_where_no_library_can_be_kept_it_is_compiled_at_every_start(fresh_library, caplog, tmp_path, cache):
    source = small_library(tmp_path, "answer", 42)
    fresh_library.setenv("XDG_CACHE_HOME", cache)
    assert building.load(source).answer() == 42
    assert "set XDG_CACHE_HOME to a folder that only you can write" in caplog.text


def small_library(folder: Path, function: str, value: int) -> Path:
    source = folder / "small.cpp"
    source.write_text(f'extern "C" int {function}() {{ return {value}; }}')
    return source


@compiled
def test_a_library_is_compiled_once(fresh_library, caplog, tmp_path):
    fresh_library.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "clone").mkdir()
    for folder in (tmp_path, tmp_path, tmp_path / "clone"):  # wherever its source lies
        assert building.load(small_library(folder, "answer", 42)).answer() == 42
    assert caplog.text.count("compiling the small backend") == 1
    assert building.load(small_library(tmp_path, "answer", 43)).answer() == 43


@compiled
@pytest.mark.parametrize("damage", ["empty", "cut off", "bit flipped"])
def test_a_damaged_library_is_compiled_anew(fresh_library, tmp_path, damage):
    fresh_library.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = small_library(tmp_path, "answer", 42)
    building.load(source)
    (library,) = (tmp_path / "cache" / "rnn_cells").glob("*.so")
    content = library.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    library.unlink()  # it is mapped into this process, which a change would reach
    library.write_bytes({"empty": b"", "cut off": content[:middle], "bit flipped": flipped}[damage])
    library.chmod(0o700)
    assert building.load(source).answer() == 42
    assert library.read_bytes() == content


@compiled
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can write files of another user")
@pytest.mark.parametrize("planted", ["file", "link", "writable"])
def test_a_library_that_others_may_have_planted_is_never_loaded(fresh_library, tmp_path, planted):
    """The library has the right name and is whole; loading it would give 666."""
    folder = tmp_path / "cache" / "rnn_cells"
    fresh_library.setenv("XDG_CACHE_HOME", str(folder.parent))
    wicked = building._compile(["g++", *building.FLAGS, str(small_library(tmp_path, "answer", 666))])
    source = small_library(tmp_path, "answer", 42)
    with fresh_library.context() as patched:
        patched.setattr(building, "_compile", lambda command: wicked)
        assert building.load(source).answer() == 666
    (library,) = folder.glob("*.so")
    if planted == "file":
        os.chown(library, 65534, 65534)
    elif planted == "link":
        library.rename(tmp_path / "elsewhere.so")
        library.symlink_to(tmp_path / "elsewhere.so")
    else:
        library.chmod(0o777)
    assert building.load(source).answer() == 42
    assert library.is_file()
    assert library.stat().st_uid == 0


@compiled
def test_the_lock_follows_no_link(fresh_library, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("dear", encoding="utf-8")
    folder = tmp_path / "cache" / "rnn_cells"
    folder.mkdir(parents=True)
    (folder / "build.lock").symlink_to(victim)
    fresh_library.setenv("XDG_CACHE_HOME", str(folder.parent))
    assert building.load(small_library(tmp_path, "answer", 42)).answer() == 42
    assert victim.read_text(encoding="utf-8") == "dear"


@compiled
def test_a_compiler_that_fails_is_a_reason_with_its_message(fresh_library, tmp_path):
    fresh_library.setenv("XDG_CACHE_HOME", str(tmp_path))
    fresh_library.setenv("RNN_CELLS_CXXFLAGS", "-std=c++98")
    assert "cpu.cpp" in (cpu.why_not(LSTMCell(4, 8), torch.zeros(3, 2, 4)) or "")
    assert [path.name for path in (tmp_path / "rnn_cells").iterdir()] == ["build.lock"]


PROGRAM = """
import logging, time, torch
logging.basicConfig(format="%(message)s")
from rnn_cells import GRU, LSTM, RNN
for kind, options in ((RNN, {}), (GRU, {}), (GRU, {"reset_after": True}), (LSTM, {"bidirectional": True})):
    for shape in SHAPES:
        steps, batch, inputs, hidden = shape
        layer = kind(inputs, hidden, **options, backend="cpu")
        x = torch.randn(batch, steps, inputs, requires_grad=True)
        for lengths in (None, torch.randint(0, steps + 1, (batch,))):
            layer(x, lengths=lengths)[0].sum().backward()
print("passed")
"""


def start(shapes: list[tuple[int, ...]], **environment: str) -> subprocess.Popen[str]:
    program = PROGRAM.replace("SHAPES", str(shapes))
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(
        [sys.executable, "-c", program], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@compiled
@pytest.mark.exhaustive
def test_four_processes_that_start_together_compile_once(tmp_path):
    started = [start([(3, 2, 4, 5)], XDG_CACHE_HOME=str(tmp_path)) for _ in range(4)]
    outputs = [process.communicate(timeout=300)[0] for process in started]
    assert all(output.endswith("passed\n") for output in outputs), outputs
    assert sum("compiling the cpu backend" in output for output in outputs) == 1
    assert len(list((tmp_path / "rnn_cells").glob("cpu-*.so"))) == 1


@compiled
@pytest.mark.exhaustive
def test_no_byte_outside_the_tensors_is_touched(tmp_path):
    runtime = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not Path(runtime).is_absolute():
        pytest.skip("g++ has no AddressSanitizer")
    shapes = [(1, 1, 1, 1), (3, 2, 4, 5), (7, 5, 19, 33), (4, 29, 130, 66), (9, 13, 40, 130), (5, 64, 8, 128)]
    flags = "-O1 -g -fsanitize=address -fno-omit-frame-pointer"
    process = start(
        shapes,
        XDG_CACHE_HOME=str(tmp_path),
        RNN_CELLS_CXXFLAGS=flags,
        LD_PRELOAD=runtime,
        ASAN_OPTIONS="detect_leaks=0",
    )
    output = process.communicate(timeout=500)[0]
    assert process.returncode == 0, output
    assert output.endswith("passed\n")
    assert "AddressSanitizer" not in output
