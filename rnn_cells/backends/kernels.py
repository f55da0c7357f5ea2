"""The kernels of the triton backend: the loop over time of one layer, in one launch each way.

Legend: T steps, B batch, H hidden_size, D directions, G gates, S blocks that are kept of a step, R rows of a tile.

A program owns R sequences, one direction and UNITS of the hidden units, from the first step to the last. It loads the
recurrent weights of its units once, before the loop, and keeps the state in registers. Where one multiprocessor can't
hold all weights, SPLIT programs share the units of the same rows: after each step they leave their part of the state in
a `mail` that the others read, and wait for each other.

The input's part of the gates, `x W`, comes in `gates` (T, B, D, S, H), in whose place a training leaves the gates' values,
and backward their gradients. Arithmetic, state and accumulators are float32; the operands of matrix products are of the
type of `mail`.
"""

import triton
import triton.language as tl

RNN = tl.constexpr(0)
LSTM = tl.constexpr(1)
GRU = tl.constexpr(2)
GRU_AFTER = tl.constexpr(3)


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1  # CUDA's own tanh isn't there under the interpreter


@triton.jit
def _meet(counter, target, MEET: tl.constexpr):
    """Wait for the other programs of these rows; what they have stored before can be read afterwards."""
    if MEET:
        tl.debug_barrier()
        tl.atomic_add(counter, 1, sem="release")
        while tl.atomic_add(counter, 0, sem="acquire") < target:
            pass
        tl.debug_barrier()


@triton.jit
def _blocks(pointers, mask, stride, COUNT: tl.constexpr):
    """The same place in COUNT blocks that lie `stride` apart: four tensors, of which the last may be repetitions."""
    block_0 = tl.load(pointers, mask=mask, other=0)
    block_1, block_2, block_3 = block_0, block_0, block_0
    if COUNT > 1:
        block_1 = tl.load(pointers + stride, mask=mask, other=0)
        block_2 = tl.load(pointers + 2 * stride, mask=mask, other=0)
    if COUNT > 3:
        block_3 = tl.load(pointers + 3 * stride, mask=mask, other=0)
    return block_0, block_1, block_2, block_3


@triton.jit
def _read(pointers, mask):
    """What other programs have written: past the first-level cache, which doesn't see it."""
    return tl.load(pointers, mask=mask, other=0, cache_modifier=".cg")


@triton.jit
def _rows(order, lengths, tile, steps, batch, ROWS: tl.constexpr, RAGGED: tl.constexpr):
    """Which sequences a tile holds, how long each one is (0: none), and whether it is one at all."""
    place = tile * ROWS + tl.arange(0, ROWS)
    present = place < batch
    if RAGGED:
        row = tl.load(order + place, mask=present, other=0).to(tl.int64)
        length = tl.load(lengths + row, mask=present, other=0).to(tl.int32)
    else:
        row = place.to(tl.int64)
        length = tl.where(present, steps, 0)
    return row, length, present


@triton.jit
def _has(length, step):
    """Which sequences have this step."""
    return tl.minimum(step, length - 1 - step) >= 0


@triton.jit(do_not_specialize=["first", "last", "steps", "batch", "first_tile", "backwards"])
def forward(
    gates,
    out,
    cells,
    weight,
    bias,
    hn,
    cn,
    mail,
    counters,
    order,
    lengths,
    first,
    last,
    steps,
    batch,
    first_tile,
    backwards,
    KIND: tl.constexpr,
    H: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    D: tl.constexpr,
    PADDED: tl.constexpr,
    UNITS: tl.constexpr,
    SPLIT: tl.constexpr,
    MEET: tl.constexpr,
    ROWS: tl.constexpr,
    RAGGED: tl.constexpr,
    BIAS: tl.constexpr,
    SAVE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Steps `first` to `last` of a layer.

    Args:
        gates: (T, B, D, S, H), the input's part in the first G blocks; with SAVE, each step's values come in its place.
        out: (T, B, D, H), written where a sequence has a step.
        cells: (T, B, D, H), each step's c, written with SAVE.
        weight: (D, G*H, H), of the products' type.
        bias: (D, G*H), read with BIAS.
        hn, cn: (D, B, H), float32: the state before, and afterwards the state behind the last step.
        mail: (2, D, B, 2, H), read and written if SPLIT > 1; before the first step it holds h in [first % 2, :, :, 0].
        counters: zeros, one per tile and direction.
        order: (B,), the sequences by length; with RAGGED.
        lengths: (B,); with RAGGED.
        first, last, steps, batch: which steps, of how many; B.
        first_tile: of this launch.
        backwards: 1 if the first direction is the one from a sequence's end to its start.
    """
    tile = first_tile + tl.program_id(0)
    direction = tl.program_id(1)
    counter = counters + tile * D + direction
    row, length, present = _rows(order, lengths, tile, steps, batch, ROWS, RAGGED)
    end = tl.minimum(tl.max(length), last)
    unit = tl.program_id(2) * UNITS + tl.arange(0, UNITS)
    every = tl.arange(0, PADDED)
    own = present[:, None] & (unit < H)[None, :]
    whole = present[:, None] & (every < H)[None, :]

    dtype = weight.dtype.element_ty
    square = (every < H)[:, None] & (unit < H)[None, :]
    matrices = weight + direction * (G * H * H) + unit[None, :] * H + every[:, None]  # transposed
    u_0, u_1, u_2, u_3 = _blocks(matrices, square, H * H, G)
    b_0, b_1, b_2, b_3 = 0.0, 0.0, 0.0, 0.0
    if BIAS:
        b_0, b_1, b_2, b_3 = _blocks(bias + direction * (G * H) + unit, unit < H, H, G)
        b_0, b_1, b_2, b_3 = b_0[None, :], b_1[None, :], b_2[None, :], b_3[None, :]
    state = (direction * batch + row)[:, None] * H + unit[None, :]
    h = tl.load(hn + state, mask=own, other=0)
    c = h
    if KIND == LSTM:
        c = tl.load(cn + state, mask=own, other=0)
    letter = ((direction * batch + row) * (2 * H))[:, None]
    slot = D * batch.to(tl.int64) * (2 * H)
    if SPLIT == 1:
        before = h.to(dtype)
    else:
        before = _read(mail + (first % 2) * slot + letter + every[None, :], whole)

    reverse = direction + backwards > 0
    time = tl.where(reverse, length - 1 - first, first)
    mask = own & _has(length, first)[:, None]
    place = ((time * batch.to(tl.int64) + row) * D + direction)[:, None]
    x_0, x_1, x_2, x_3 = _blocks(gates + place * (S * H) + unit[None, :], mask, H, G)
    for step in range(first, end):
        kept = gates + place * (S * H) + unit[None, :]
        if KIND == RNN:
            new = _tanh(x_0 + tl.dot(before, u_0, input_precision=PRECISION) + b_0)
        elif KIND == LSTM:
            i = tl.sigmoid(x_0 + tl.dot(before, u_0, input_precision=PRECISION) + b_0)
            f = tl.sigmoid(x_1 + tl.dot(before, u_1, input_precision=PRECISION) + b_1)
            g = _tanh(x_2 + tl.dot(before, u_2, input_precision=PRECISION) + b_2)
            o = tl.sigmoid(x_3 + tl.dot(before, u_3, input_precision=PRECISION) + b_3)
            c = tl.where(mask, f * c + i * g, c)
            new = o * _tanh(c)
            if SAVE:
                tl.store(kept, i, mask=mask)
                tl.store(kept + H, f, mask=mask)
                tl.store(kept + 2 * H, g, mask=mask)
                tl.store(kept + 3 * H, o, mask=mask)
                tl.store(cells + place * H + unit[None, :], c, mask=mask)
        else:
            r = tl.sigmoid(x_0 + tl.dot(before, u_0, input_precision=PRECISION) + b_0)
            z = tl.sigmoid(x_1 + tl.dot(before, u_1, input_precision=PRECISION) + b_1)
            if KIND == GRU_AFTER:
                past = tl.dot(before, u_2, input_precision=PRECISION) + b_2
                n = _tanh(x_2 + r * past)
            else:
                past = r * h
                if SPLIT == 1:
                    read = past.to(dtype)
                else:
                    tl.store(mail + letter + H + unit[None, :], past, mask=own)
                    _meet(counter, (2 * (step - first) + 1) * SPLIT, MEET)
                    read = _read(mail + letter + H + every[None, :], whole)
                n = _tanh(x_2 + tl.dot(read, u_2, input_precision=PRECISION) + b_2)
            new = z * h + (1 - z) * n
            if SAVE:
                tl.store(kept, r, mask=mask)
                tl.store(kept + H, z, mask=mask)
                tl.store(kept + 2 * H, n, mask=mask)
                tl.store(kept + 3 * H, past, mask=mask)
        h = tl.where(mask, new, h)
        if SPLIT == 1:
            before = h.to(dtype)
        else:
            target = mail + ((step + 1) % 2) * slot + letter
            tl.store(target + unit[None, :], h, mask=own)
            if KIND == GRU:
                _meet(counter, (2 * (step - first) + 2) * SPLIT, MEET)
            else:
                _meet(counter, (step - first + 1) * SPLIT, MEET)
            before = _read(target + every[None, :], whole)
        tl.store(out + place * H + unit[None, :], h, mask=mask)
        time = tl.where(reverse, length - 2 - step, step + 1)
        mask = own & _has(length, step + 1)[:, None]
        place = ((time * batch.to(tl.int64) + row) * D + direction)[:, None]
        x_0, x_1, x_2, x_3 = _blocks(gates + place * (S * H) + unit[None, :], mask, H, G)
    tl.store(hn + state, h, mask=own)
    if KIND == LSTM:
        tl.store(cn + state, c, mask=own)


@triton.jit
def _letters(pointers, mask, H: tl.constexpr, KIND: tl.constexpr):
    """The gradients of the blocks that `h U` is in; the others are repetitions."""
    block_0 = _read(pointers, mask)
    block_1, block_2, block_3 = block_0, block_0, block_0
    if KIND != RNN:
        block_1 = _read(pointers + H, mask)
    if KIND == LSTM:
        block_2 = _read(pointers + 2 * H, mask)
    if KIND == LSTM or KIND == GRU_AFTER:
        block_3 = _read(pointers + 3 * H, mask)
    return block_0, block_1, block_2, block_3


@triton.jit
def _through(rest, e_0, e_1, e_2, e_3, u_0, u_1, u_2, u_3, KIND: tl.constexpr, PRECISION: tl.constexpr):
    """The gradient of h, from those of the blocks that `h U` is in, and the rest that comes without a product."""
    rest = tl.dot(e_0, u_0, rest, input_precision=PRECISION)
    if KIND != RNN:
        rest = tl.dot(e_1, u_1, rest, input_precision=PRECISION)
    if KIND == LSTM:
        rest = tl.dot(e_2, u_2, rest, input_precision=PRECISION)
        rest = tl.dot(e_3, u_3, rest, input_precision=PRECISION)
    if KIND == GRU_AFTER:
        rest = tl.dot(e_3, u_2, rest, input_precision=PRECISION)
    return rest


@triton.jit(do_not_specialize=["first", "last", "steps", "batch", "first_tile", "backwards"])
def backward(
    gates,
    dgates,
    out,
    cells,
    dout,
    weight,
    h0,
    c0,
    dh,
    dc,
    mail,
    counters,
    order,
    lengths,
    first,
    last,
    steps,
    batch,
    first_tile,
    backwards,
    KIND: tl.constexpr,
    H: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    D: tl.constexpr,
    PADDED: tl.constexpr,
    UNITS: tl.constexpr,
    SPLIT: tl.constexpr,
    MEET: tl.constexpr,
    ROWS: tl.constexpr,
    RAGGED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradients of a layer's steps, from a sequence's end to its start; what `forward` doesn't explain is:

    Args:
        gates: what `forward` left of each step.
        dgates: (T, B, D, S, H), may be `gates`: the gradients of the gates before their functions. Of a GRU the first
            three blocks belong to `x W`; with KIND GRU_AFTER the last one belongs to `h U_n` instead of the third, and
            with KIND GRU it isn't written.
        out: outputs of `forward`.
        dout: their gradient.
        h0, c0: (D, B, H), float32, the initial state.
        dh, dc: (D, B, H), float32: the gradient of the final state, and afterwards that of the initial one.
        mail: (2, D, B, S, H), zeros, read and written if SPLIT > 1.
        first, last: which steps, counted from each tile's last one; `dh` is complete when `last` is
            beyond `steps`.
    """
    tile = first_tile + tl.program_id(0)
    direction = tl.program_id(1)
    counter = counters + tile * D + direction
    row, length, present = _rows(order, lengths, tile, steps, batch, ROWS, RAGGED)
    longest = tl.max(length)
    unit = tl.program_id(2) * UNITS + tl.arange(0, UNITS)
    every = tl.arange(0, PADDED)
    own = present[:, None] & (unit < H)[None, :]
    whole = present[:, None] & (every < H)[None, :]

    dtype = weight.dtype.element_ty
    square = (every < H)[:, None] & (unit < H)[None, :]
    matrices = weight + direction * (G * H * H) + every[:, None] * H + unit[None, :]
    u_0, u_1, u_2, u_3 = _blocks(matrices, square, H * H, G)
    state = (direction * batch + row)[:, None] * H + unit[None, :]
    dstate = tl.load(dh + state, mask=own, other=0)
    dcell, initial = dstate, dstate
    if KIND == LSTM:
        dcell = tl.load(dc + state, mask=own, other=0)
        initial = tl.load(c0 + state, mask=own, other=0)
    elif KIND != RNN:
        initial = tl.load(h0 + state, mask=own, other=0)
    letter = ((direction * batch + row) * (S * H))[:, None]
    slot = D * batch.to(tl.int64) * (S * H)
    if SPLIT == 1:
        e_0 = tl.zeros((ROWS, PADDED), dtype)
        e_1, e_2, e_3 = e_0, e_0, e_0
    else:
        e_0, e_1, e_2, e_3 = _letters(mail + tl.minimum(first, longest) % 2 * slot + letter + every[None, :], whole, H, KIND)

    reverse = direction + backwards > 0
    forth = tl.where(reverse, -batch * D, batch * D)  # from a step's place to the next one's
    step = longest - 1 - first
    mask = own & _has(length, step)[:, None]
    time = tl.where(reverse, length - 1 - step, step)
    place = ((time * batch.to(tl.int64) + row) * D + direction)[:, None]
    x_0, x_1, x_2, x_3 = _blocks(gates + place * (S * H) + unit[None, :], mask, H, S)
    y = tl.load(dout + place * H + unit[None, :], mask=mask, other=0)
    now, past = x_0, x_0  # c or h of this step, and of the one before it
    earlier = own & _has(length, step - 1)[:, None]
    if KIND == LSTM:
        now = tl.load(cells + place * H + unit[None, :], mask=mask, other=0)
        past = tl.load(cells + (place - forth) * H + unit[None, :], mask=earlier, other=0)
    elif KIND != RNN:
        past = tl.load(out + (place - forth) * H + unit[None, :], mask=earlier, other=0)
    for back in range(first, tl.minimum(longest, last)):
        dstate = _through(dstate, e_0, e_1, e_2, e_3, u_0, u_1, u_2, u_3, KIND, PRECISION)
        dy = y + tl.where(mask, dstate, 0)
        if SPLIT > 1:
            target = mail + (back + 1) % 2 * slot + letter
        if KIND == RNN:
            h = x_0.to(tl.float32)
            d_0 = dy * (1 - h * h)
            d_1, d_2, d_3, rest = d_0, d_0, d_0, tl.zeros_like(d_0)
        elif KIND == LSTM:
            i, f, g, o = x_0.to(tl.float32), x_1.to(tl.float32), x_2.to(tl.float32), x_3.to(tl.float32)
            tanh_c = _tanh(now.to(tl.float32))
            c = tl.where(step > 0, past.to(tl.float32), initial)
            dc_here = tl.where(mask, dcell + dy * o * (1 - tanh_c * tanh_c), 0)
            d_0 = dc_here * g * i * (1 - i)
            d_1 = dc_here * c * f * (1 - f)
            d_2 = dc_here * i * (1 - g * g)
            d_3 = dy * tanh_c * o * (1 - o)
            dcell = tl.where(mask, dc_here * f, dcell)
            rest = tl.zeros_like(d_0)
        else:
            r, z, n, product = x_0.to(tl.float32), x_1.to(tl.float32), x_2.to(tl.float32), x_3.to(tl.float32)
            h = tl.where(step > 0, past.to(tl.float32), initial)
            d_1 = dy * (h - n) * z * (1 - z)
            d_2 = dy * (1 - z) * (1 - n * n)
            rest = dy * z
            if KIND == GRU_AFTER:
                d_0 = d_2 * product * r * (1 - r)
                d_3 = d_2 * r
            else:
                if SPLIT == 1:
                    e_2 = d_2.to(dtype)
                else:
                    tl.store(target + 2 * H + unit[None, :], d_2, mask=own)
                    _meet(counter, (2 * (back - first) + 1) * SPLIT, MEET)
                    e_2 = _read(target + 2 * H + every[None, :], whole)
                dproduct = tl.dot(e_2, u_2, input_precision=PRECISION)
                d_0 = dproduct * h * r * (1 - r)
                d_3 = d_0
                rest += dproduct * r
        dstate = tl.where(mask, rest, dstate)
        left = dgates + place * (S * H) + unit[None, :]
        tl.store(left, d_0, mask=mask)
        if KIND != RNN:
            tl.store(left + H, d_1, mask=mask)
            tl.store(left + 2 * H, d_2, mask=mask)
            if KIND != GRU:
                tl.store(left + 3 * H, d_3, mask=mask)
        if SPLIT == 1:
            e_0, e_1, e_2, e_3 = d_0.to(dtype), d_1.to(dtype), d_2.to(dtype), d_3.to(dtype)
        else:
            tl.store(target + unit[None, :], d_0, mask=own)
            if KIND != RNN:
                tl.store(target + H + unit[None, :], d_1, mask=own)
                if KIND == LSTM:
                    tl.store(target + 2 * H + unit[None, :], d_2, mask=own)
                if KIND != GRU:
                    tl.store(target + 3 * H + unit[None, :], d_3, mask=own)
            if KIND == GRU:
                _meet(counter, (2 * (back - first) + 2) * SPLIT, MEET)
            else:
                _meet(counter, (back - first + 1) * SPLIT, MEET)
            e_0, e_1, e_2, e_3 = _letters(target + every[None, :], whole, H, KIND)
        # What the next turn needs is on its way while the products are made.
        step -= 1
        mask = own & _has(length, step)[:, None]
        earlier = own & _has(length, step - 1)[:, None]
        place -= forth
        x_0, x_1, x_2, x_3 = _blocks(gates + place * (S * H) + unit[None, :], mask, H, S)
        y = tl.load(dout + place * H + unit[None, :], mask=mask, other=0)
        if KIND == LSTM:
            now = past
            past = tl.load(cells + (place - forth) * H + unit[None, :], mask=earlier, other=0)
        elif KIND != RNN:
            past = tl.load(out + (place - forth) * H + unit[None, :], mask=earlier, other=0)
    if last > steps:
        dstate = _through(dstate, e_0, e_1, e_2, e_3, u_0, u_1, u_2, u_3, KIND, PRECISION)
    tl.store(dh + state, dstate, mask=own)
    if KIND == LSTM:
        tl.store(dc + state, dcell, mask=own)
