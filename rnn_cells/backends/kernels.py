"""The kernels of the triton backend: a whole scan, forward or backward, in one launch.

Legend: T steps, B batch, H hidden_size, D directions, G gates, S blocks that are kept of a step, R rows of a tile.

A program owns R sequences, one direction and UNITS of the hidden units, from the first step to the last. It loads the
recurrent weights of its units once, before the loop, and keeps the state in registers. Where one multiprocessor can't
hold all weights, SPLIT programs share the units of the same rows: after each step they leave their part of the state
in a `mail` that the others read, and wait for each other (MEET). Where even their part of the weights is too much, they
STREAM it from the cache.

The input's part of the gates, `x W`, comes in `gates` (T, B, D, S, H), in whose place a training leaves the gates'
values, and backward their gradients. Arithmetic, state and sums are float32; the operands of matrix products are of the
type of `weight`, and PRECISION says how float32 ones are multiplied. What a step reads of memory is fetched during the
step before it.
"""

import triton
import triton.language as tl

RNN = tl.constexpr(0)
LSTM = tl.constexpr(1)
GRU = tl.constexpr(2)
GRU_AFTER = tl.constexpr(3)
CHUNK = tl.constexpr(64)  # of the hidden units, when weights are streamed

NUMBERS = ["first", "last", "steps", "batch", "first_tile", "backwards"]  # one kernel for all values
GIVEN = ["bias_ih", "bias_hh", "h0", "c0", "dhn", "dcn", "order", "lengths"]  # and wherever these begin


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1  # CUDA's own tanh isn't there under the interpreter


@triton.jit
def _rows(order, lengths, tile, steps, batch, R: tl.constexpr):
    """Which sequences a tile holds, how long each one is (0: none), and whether it is one at all."""
    place = tile * R + tl.arange(0, R)
    present = place < batch
    if lengths is None:
        row = place.to(tl.int64)
        length = tl.where(present, steps, 0)
    else:
        row = tl.load(order + place, mask=present, other=0).to(tl.int64)
        length = tl.load(lengths + row, mask=present, other=0).to(tl.int32)
        length = tl.minimum(tl.maximum(length, 0), steps)  # nobody has looked at them
    return row, length, present


@triton.jit
def _units(present, H: tl.constexpr, UNITS: tl.constexpr):
    """This program's hidden units, and where a step's four blocks hold them; each with the mask of a tile (R, …)."""
    unit = tl.program_id(2) * UNITS + tl.arange(0, UNITS)
    column = tl.arange(0, 4 * UNITS)
    unit_of_column = tl.program_id(2) * UNITS + column % UNITS
    four = (column // UNITS * H + unit_of_column)[None, :]
    return unit, present[:, None] & (unit < H)[None, :], four, present[:, None] & (unit_of_column < H)[None, :]


@triton.jit
def _has(length, step):
    """Which sequences have this step."""
    return tl.minimum(step, length - 1 - step) >= 0


@triton.jit
def _pack(a, b, c, d, R: tl.constexpr, UNITS: tl.constexpr):
    """Four blocks (R, UNITS) beside each other: one store, and one change of layout, instead of four."""
    blocks = tl.join(tl.join(a, c), tl.join(b, d))
    return tl.reshape(tl.permute(blocks, (0, 2, 3, 1)), (R, 4 * UNITS))


@triton.jit
def _unpack(packed, R: tl.constexpr, UNITS: tl.constexpr):
    """The four blocks of `_pack`, in float32."""
    blocks = tl.permute(tl.reshape(packed, (R, 2, 2, UNITS)), (0, 3, 1, 2))
    first, second = tl.split(blocks)
    a, c = tl.split(first)
    b, d = tl.split(second)
    return a.to(tl.float32), b.to(tl.float32), c.to(tl.float32), d.to(tl.float32)


@triton.jit
def _weights(matrices, mask, stride, G: tl.constexpr, STREAM: tl.constexpr):
    """One tensor per gate, `stride` apart; the last may be repetitions. Nothing is loaded of what is streamed."""
    if STREAM:
        u_0, u_1, u_2, u_3 = 0, 0, 0, 0
    else:
        u_0 = tl.load(matrices, mask=mask, other=0)
        u_1, u_2, u_3 = u_0, u_0, u_0
        if G > 1:
            u_1 = tl.load(matrices + stride, mask=mask, other=0)
            u_2 = tl.load(matrices + 2 * stride, mask=mask, other=0)
        if G > 3:
            u_3 = tl.load(matrices + 3 * stride, mask=mask, other=0)
    return u_0, u_1, u_2, u_3


@triton.jit
def _leave(pointers, gradients, first, mask):
    """Store a tile's sum, on top of what an earlier launch has left."""
    total = tl.sum(gradients, 0)
    if first > 0:
        total += tl.load(pointers, mask=mask, other=0)
    tl.store(pointers, total, mask=mask)


@triton.jit
def _read(pointers, mask):
    """What other programs have written: past the first-level cache, which doesn't see it."""
    return tl.load(pointers, mask=mask, other=0, cache_modifier=".cg")


@triton.jit
def _letter(pointers, present, H: tl.constexpr, PADDED: tl.constexpr, STREAM: tl.constexpr):
    """A row of mail (R, PADDED); nothing, where `_times` reads it itself."""
    if STREAM:
        letter = 0
    else:
        every = tl.arange(0, PADDED)
        letter = _read(pointers + every[None, :], present[:, None] & (every < H)[None, :])
    return letter


@triton.jit
def _times(
    total,
    letter,
    u,
    pointers,
    matrix,
    present,
    ahead,
    H: tl.constexpr,
    UNITS: tl.constexpr,
    STREAM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`total + letter u`; what is streamed lies at `pointers` (R, 1) and `matrix` (1, UNITS), in rows `ahead` apart."""
    if STREAM:
        unit = tl.program_id(2) * UNITS + tl.arange(0, UNITS)
        for start in range(0, H, CHUNK):
            k = start + tl.arange(0, CHUNK)
            part = _read(pointers + k[None, :], present[:, None] & (k < H)[None, :])
            weights = tl.load(matrix + k[:, None] * ahead, mask=(k < H)[:, None] & (unit < H)[None, :], other=0)
            total = tl.dot(part, weights, total, input_precision=PRECISION)
    else:
        total = tl.dot(letter, u, total, input_precision=PRECISION)
    return total


@triton.jit
def _acquire(counter):
    """Its value, for every thread: what was released before it was set is visible to the thread from here on."""
    address = counter.to(tl.uint64, bitcast=True)
    return tl.inline_asm_elementwise(
        "ld.acquire.gpu.global.u32 $0, [$1];", "=r,l", [address], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _meet(counter, target, MEET: tl.constexpr):
    """Wait for the other programs of these rows; what they have stored before can be read afterwards."""
    if MEET:
        tl.debug_barrier()
        tl.atomic_add(counter, 1, sem="release")
        while _acquire(counter) < target:
            pass


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=GIVEN)
def forward(
    gates,
    hs,
    cells,
    weight,
    bias_ih,
    bias_hh,
    h0,
    c0,
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
    STREAM: tl.constexpr,
    MEET: tl.constexpr,
    R: tl.constexpr,
    PRECISION: tl.constexpr,
    SAVE: tl.constexpr,
):
    """Steps `first` to `last` of a layer.

    Args:
        gates: (T, B, D, S, H), `x W` in the first G blocks; with SAVE, each step's values come in its place.
            Those of an RNN are the outputs.
        hs: (T + 2, B, D, H): outputs, written where a sequence has a step, and the initial state where the first step
            looks for the one before it.
        cells: (T, B, D, H), each step's c of an LSTM, written with SAVE.
        weight: (D, G*H, H), of the products' type.
        bias_ih, bias_hh: (D, G*H), or both None.
        h0, c0: (D, B, H), the state before step `first`; zeros if None.
        hn, cn: (D, B, H), get the state behind step `last`.
        mail: (2, D, B, 2, H), if SPLIT > 1; h is in [first % 2, :, :, 0].
        counters: zeros, one per tile and direction, if SPLIT > 1.
        order: (B,), the sequences by length; None if all have all steps.
        lengths: (B,), or None.
        first, last, steps, batch: which steps, of how many; B.
        first_tile: of this launch.
        backwards: 1 if the first direction is the one from a sequence's end to its start.
    """
    tile = first_tile + tl.program_id(0)
    direction = tl.program_id(1)
    row, length, present = _rows(order, lengths, tile, steps, batch, R)
    end = tl.minimum(tl.max(length), last)
    unit, own, four, own_four = _units(present, H, UNITS)
    every = tl.arange(0, PADDED)

    dtype = weight.dtype.element_ty
    square = (every < H)[:, None] & (unit < H)[None, :]
    U_0 = weight + direction * (G * H * H) + unit[None, :] * H  # transposed: its rows are columns of the product
    U_1, U_2, U_3 = U_0 + H * H, U_0 + 2 * H * H, U_0 + 3 * H * H
    u_0, u_1, u_2, u_3 = _weights(U_0 + every[:, None], square, H * H, G, STREAM)
    a_2 = tl.zeros((1, UNITS), tl.float32)
    b_0, b_1, b_2, b_3 = a_2, a_2, a_2, a_2
    if bias_ih is not None:
        biases = direction * (G * H) + unit[None, :]
        a_0, a_1, a_2, a_3 = _weights(bias_ih + biases, (unit < H)[None, :], H, G, False)
        b_0, b_1, b_2, b_3 = _weights(bias_hh + biases, (unit < H)[None, :], H, G, False)
        b_0, b_1, b_3 = b_0 + a_0, b_1 + a_1, b_3 + a_3
        if KIND != GRU_AFTER:  # whose reset gate acts on one of the two
            b_2 += a_2
    state = (direction * batch + row)[:, None] * H + unit[None, :]
    h = tl.zeros((R, UNITS), tl.float32)
    c = h
    if h0 is not None:
        h = tl.load(h0 + state, mask=own, other=0).to(tl.float32)
        if KIND == LSTM:
            c = tl.load(c0 + state, mask=own, other=0).to(tl.float32)

    reverse = direction + backwards > 0
    if SAVE and first == 0:
        corner = tl.where(reverse, steps + 1, 0) * batch.to(tl.int64) * (D * H)
        tl.store(hs + corner + (row * D + direction)[:, None] * H + unit[None, :], h, mask=own)
    if SPLIT > 1:
        counter = counters + tile * D + direction
        letters = mail + ((direction * batch + row) * (2 * H))[:, None]
        slot = D * batch.to(tl.int64) * (2 * H)
        source = letters + first % 2 * slot
        before = _letter(source, present, H, PADDED, STREAM)
    else:
        source = hs
        before = h.to(dtype)
    out = hs + batch.to(tl.int64) * (D * H)
    time = tl.where(reverse, length - 1 - first, first)
    has = _has(length, first)[:, None]
    place = ((time * batch.to(tl.int64) + row) * D + direction)[:, None]
    if KIND == RNN:
        x = tl.load(gates + place * H + unit[None, :], mask=own & has, other=0)
    else:
        x = tl.load(gates + place * (S * H) + four, mask=own_four & has, other=0)
    for step in range(first, end):
        time = tl.where(reverse, length - 2 - step, step + 1)
        next_has = _has(length, step + 1)[:, None]
        next_place = ((time * batch.to(tl.int64) + row) * D + direction)[:, None]
        if KIND == RNN:
            next_x = tl.load(gates + next_place * H + unit[None, :], mask=own & next_has, other=0)
        else:
            next_x = tl.load(gates + next_place * (S * H) + four, mask=own_four & next_has, other=0)
        zero = tl.zeros((R, UNITS), tl.float32)
        y_0 = _times(zero, before, u_0, source, U_0, present, 1, H, UNITS, STREAM, PRECISION) + b_0
        if KIND == RNN:
            new = _tanh(x.to(tl.float32) + y_0)
        else:
            x_0, x_1, x_2, x_3 = _unpack(x, R, UNITS)
            y_1 = _times(zero, before, u_1, source, U_1, present, 1, H, UNITS, STREAM, PRECISION) + b_1
            if KIND == LSTM:
                y_2 = _times(zero, before, u_2, source, U_2, present, 1, H, UNITS, STREAM, PRECISION) + b_2
                y_3 = _times(zero, before, u_3, source, U_3, present, 1, H, UNITS, STREAM, PRECISION) + b_3
                i, f, o = tl.sigmoid(x_0 + y_0), tl.sigmoid(x_1 + y_1), tl.sigmoid(x_3 + y_3)
                g = _tanh(x_2 + y_2)
                c = tl.where(has, f * c + i * g, c)
                new = o * _tanh(c)
                kept = _pack(i, f, g, o, R, UNITS)
            else:
                r, z = tl.sigmoid(x_0 + y_0), tl.sigmoid(x_1 + y_1)
                if KIND == GRU_AFTER:
                    y_2 = _times(zero, before, u_2, source, U_2, present, 1, H, UNITS, STREAM, PRECISION)
                    past = y_2 + b_2
                    n = _tanh(x_2 + a_2 + r * past)
                else:
                    past = r * h
                    if SPLIT > 1:
                        tl.store(letters + H + unit[None, :], past, mask=own)
                        _meet(counter, (2 * (step - first) + 1) * SPLIT, MEET)
                        resets = _letter(letters + H, present, H, PADDED, STREAM)
                        y_2 = _times(zero, resets, u_2, letters + H, U_2, present, 1, H, UNITS, STREAM, PRECISION)
                    else:
                        y_2 = tl.dot(past.to(dtype), u_2, input_precision=PRECISION)
                    n = _tanh(x_2 + y_2 + b_2)
                new = z * h + (1 - z) * n
                kept = _pack(r, z, n, past, R, UNITS)
        h = tl.where(has, new, h)
        if SPLIT > 1:
            source = letters + (step + 1) % 2 * slot
            tl.store(source + unit[None, :], h, mask=own)
            if KIND == GRU:
                _meet(counter, (2 * (step - first) + 2) * SPLIT, MEET)
            else:
                _meet(counter, (step - first + 1) * SPLIT, MEET)
            before = _letter(source, present, H, PADDED, STREAM)
        else:
            before = h.to(dtype)
        tl.store(out + place * H + unit[None, :], h, mask=own & has)
        if SAVE and KIND != RNN:
            tl.store(gates + place * (S * H) + four, kept.to(gates.dtype.element_ty), mask=own_four & has)
            if KIND == LSTM:
                tl.store(cells + place * H + unit[None, :], c, mask=own & has)
        x, has, place = next_x, next_has, next_place
    tl.store(hn + state, h, mask=own)
    if KIND == LSTM:
        tl.store(cn + state, c, mask=own)


@triton.jit
def _through(
    rest,
    e_0,
    e_1,
    e_2,
    e_3,
    u_0,
    u_1,
    u_2,
    u_3,
    source,
    matrix,
    present,
    KIND: tl.constexpr,
    H: tl.constexpr,
    UNITS: tl.constexpr,
    STREAM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradient of h: from those of the blocks that `h U` is in, and the rest that comes without a product."""
    rest = _times(rest, e_0, u_0, source, matrix, present, H, H, UNITS, STREAM, PRECISION)
    if KIND != RNN:
        rest = _times(rest, e_1, u_1, source + H, matrix + H * H, present, H, H, UNITS, STREAM, PRECISION)
    if KIND == LSTM:
        rest = _times(rest, e_2, u_2, source + 2 * H, matrix + 2 * H * H, present, H, H, UNITS, STREAM, PRECISION)
        rest = _times(rest, e_3, u_3, source + 3 * H, matrix + 3 * H * H, present, H, H, UNITS, STREAM, PRECISION)
    if KIND == GRU_AFTER:
        rest = _times(rest, e_3, u_2, source + 3 * H, matrix + 2 * H * H, present, H, H, UNITS, STREAM, PRECISION)
    return rest


@triton.jit
def _letters(source, present, KIND: tl.constexpr, H: tl.constexpr, PADDED: tl.constexpr, STREAM: tl.constexpr):
    """The gradients that `_through` multiplies; the others are repetitions."""
    e_0 = _letter(source, present, H, PADDED, STREAM)
    e_1, e_2, e_3 = e_0, e_0, e_0
    if KIND != RNN:
        e_1 = _letter(source + H, present, H, PADDED, STREAM)
    if KIND == LSTM:
        e_2 = _letter(source + 2 * H, present, H, PADDED, STREAM)
    if KIND == LSTM or KIND == GRU_AFTER:
        e_3 = _letter(source + 3 * H, present, H, PADDED, STREAM)
    return e_0, e_1, e_2, e_3


@triton.jit(do_not_specialize=[*NUMBERS, "dout_step", "dout_row"], do_not_specialize_on_alignment=[*GIVEN, "dout"])
def backward(
    gates,
    dgates,
    hs,
    cells,
    dout,
    weight,
    h0,
    c0,
    dhn,
    dcn,
    dh0,
    dc0,
    dbias,
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
    dout_step,
    dout_row,
    KIND: tl.constexpr,
    H: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    D: tl.constexpr,
    PADDED: tl.constexpr,
    UNITS: tl.constexpr,
    SPLIT: tl.constexpr,
    STREAM: tl.constexpr,
    MEET: tl.constexpr,
    R: tl.constexpr,
    PRECISION: tl.constexpr,
    DOUT_UNIT: tl.constexpr,
):
    """The gradients of a layer's steps, from a sequence's end to its start.

    What `forward` doesn't explain is:

    Args:
        gates: what `forward` left of each step.
        dgates: (T, B, D, S, H), may be `gates`: the gradients of the gates before their functions. Of a GRU the first
            three blocks belong to `x W`; with KIND GRU_AFTER the last one belongs to `h U_n` instead of the third, and
            with KIND GRU it is left as it was.
        dout: (T, B, D*H) or None, the gradient of the outputs, strided by dout_step, dout_row and DOUT_UNIT.
        h0, c0: the initial state; zeros if None.
        dhn, dcn: (D, B, H) or None, the gradient of the final state.
        dh0, dc0: (D, B, H), get that of the initial one.
        dbias: (tiles, D, S, H) or None, gets each tile's sum of the gates' gradients over steps and sequences.
        mail: (2, D, B, S, H), zeros, if SPLIT > 1.
        first, last: which steps, counted from each tile's last one; `last` is `steps + 1` at the end.
    """
    tile = first_tile + tl.program_id(0)
    direction = tl.program_id(1)
    row, length, present = _rows(order, lengths, tile, steps, batch, R)
    longest = tl.max(length)
    unit, own, four, own_four = _units(present, H, UNITS)
    every = tl.arange(0, PADDED)

    dtype = weight.dtype.element_ty
    square = (every < H)[:, None] & (unit < H)[None, :]
    matrix = weight + direction * (G * H * H) + unit[None, :]
    u_0, u_1, u_2, u_3 = _weights(matrix + every[:, None] * H, square, H * H, G, STREAM)
    state = (direction * batch + row)[:, None] * H + unit[None, :]
    dh = tl.zeros((R, UNITS), tl.float32)
    dc = dh
    initial = dh  # c0, or a GRU's h0
    if dhn is not None:
        dh = tl.load(dhn + state, mask=own, other=0).to(tl.float32)
    if KIND == LSTM:
        if dcn is not None:
            dc = tl.load(dcn + state, mask=own, other=0).to(tl.float32)
        if c0 is not None:
            initial = tl.load(c0 + state, mask=own, other=0).to(tl.float32)
    elif KIND != RNN:
        if h0 is not None:
            initial = tl.load(h0 + state, mask=own, other=0).to(tl.float32)
    if SPLIT > 1:
        counter = counters + tile * D + direction
        letters = mail + ((direction * batch + row) * (S * H))[:, None]
        slot = D * batch.to(tl.int64) * (S * H)
        source = letters + tl.minimum(first, longest) % 2 * slot
        e_0, e_1, e_2, e_3 = _letters(source, present, KIND, H, PADDED, STREAM)
    else:
        source = dh0
        e_0 = tl.zeros((R, PADDED), dtype)
        e_1, e_2, e_3 = e_0, e_0, e_0

    reverse = direction + backwards > 0
    out = hs + batch.to(tl.int64) * (D * H)
    forth = tl.where(reverse, -batch * D, batch * D)  # from a step's place to the next one's
    step = longest - 1 - first
    has = _has(length, step)[:, None]
    time = tl.where(reverse, length - 1 - step, step)
    place = ((time * batch.to(tl.int64) + row) * D + direction)[:, None]
    if KIND == RNN:
        x = tl.load(gates + place * H + unit[None, :], mask=own & has, other=0)
    else:
        x = tl.load(gates + place * (S * H) + four, mask=own_four & has, other=0)
    y = dh
    dout_unit = (row * dout_row)[:, None] + ((direction * H + unit) * DOUT_UNIT)[None, :]
    if dout is not None:
        y = tl.load(dout + (time * dout_step.to(tl.int64))[:, None] + dout_unit, mask=own & has, other=0)
    # An LSTM's c of this step and of the one before it; of a GRU, h of the one before it.
    now, past = dh, dh
    if KIND == LSTM:
        now = tl.load(cells + place * H + unit[None, :], mask=own & has, other=0)
        past = tl.load(cells + (place - forth) * H + unit[None, :], mask=own & _has(length, step - 1)[:, None], other=0)
    elif KIND != RNN:
        past = tl.load(out + (place - forth) * H + unit[None, :], mask=own & _has(length, step - 1)[:, None], other=0)
    db_0, db_1, db_2, db_3 = tl.zeros_like(dh), tl.zeros_like(dh), tl.zeros_like(dh), tl.zeros_like(dh)
    # One turn more than there are steps: the gradient of the initial state still lacks a product.
    for back in range(first, tl.minimum(longest + 1, last)):
        step = longest - 1 - back
        next_has = _has(length, step - 1)[:, None]
        next_place = place - forth
        if KIND == RNN:
            next_x = tl.load(gates + next_place * H + unit[None, :], mask=own & next_has, other=0)
        else:
            next_x = tl.load(gates + next_place * (S * H) + four, mask=own_four & next_has, other=0)
        next_y = y
        if dout is not None:
            time = tl.where(reverse, length - step, step - 1)
            next_y = tl.load(dout + (time * dout_step.to(tl.int64))[:, None] + dout_unit, mask=own & next_has, other=0)
        next_past = past
        older = own & _has(length, step - 2)[:, None]
        if KIND == LSTM:
            next_past = tl.load(cells + (next_place - forth) * H + unit[None, :], mask=older, other=0)
        elif KIND != RNN:
            next_past = tl.load(out + (next_place - forth) * H + unit[None, :], mask=older, other=0)

        dh = _through(
            dh, e_0, e_1, e_2, e_3, u_0, u_1, u_2, u_3, source, matrix, present, KIND, H, UNITS, STREAM, PRECISION
        )
        dy = tl.where(has, dh, 0)
        if dout is not None:
            dy += y.to(tl.float32)
        if SPLIT > 1:
            source = letters + (back + 1) % 2 * slot
        if KIND == RNN:
            h = x.to(tl.float32)
            d_0 = dy * (1 - h * h)
            d_1, d_2, d_3, rest = d_0, d_0, d_0, tl.zeros_like(d_0)
        elif KIND == LSTM:
            i, f, g, o = _unpack(x, R, UNITS)
            tanh_c = _tanh(now.to(tl.float32))
            c = tl.where(step > 0, past.to(tl.float32), initial)
            dc_here = tl.where(has, dc + dy * o * (1 - tanh_c * tanh_c), 0)
            d_0 = dc_here * g * i * (1 - i)
            d_1 = dc_here * c * f * (1 - f)
            d_2 = dc_here * i * (1 - g * g)
            d_3 = dy * tanh_c * o * (1 - o)
            dc = tl.where(has, dc_here * f, dc)
            rest = tl.zeros_like(d_0)
            left = _pack(d_0, d_1, d_2, d_3, R, UNITS)
        else:
            r, z, n, product = _unpack(x, R, UNITS)
            h = tl.where(step > 0, past.to(tl.float32), initial)
            d_1 = dy * (h - n) * z * (1 - z)
            d_2 = dy * (1 - z) * (1 - n * n)
            rest = dy * z
            if KIND == GRU_AFTER:
                d_0 = d_2 * product * r * (1 - r)
                d_3 = d_2 * r
                left = _pack(d_0, d_1, d_2, d_3, R, UNITS)
            else:
                dproduct = tl.zeros_like(d_2)
                if SPLIT > 1:
                    tl.store(source + 2 * H + unit[None, :], d_2, mask=own)
                    _meet(counter, (2 * (back - first) + 1) * SPLIT, MEET)
                    e_2 = _letter(source + 2 * H, present, H, PADDED, STREAM)
                    theirs, matrix_2 = source + 2 * H, matrix + 2 * H * H
                    dproduct = _times(dproduct, e_2, u_2, theirs, matrix_2, present, H, H, UNITS, STREAM, PRECISION)
                else:
                    dproduct = tl.dot(d_2.to(dtype), u_2, input_precision=PRECISION)
                d_0 = dproduct * h * r * (1 - r)
                d_3 = product
                rest += dproduct * r
                left = _pack(d_0, d_1, d_2, product, R, UNITS)
        dh = tl.where(has, rest, dh)
        if dbias is not None:
            db_0 += d_0
            if KIND != RNN:
                db_1 += d_1
                db_2 += d_2
            if KIND == LSTM or KIND == GRU_AFTER:
                db_3 += d_3
        if SPLIT > 1:
            tl.store(source + unit[None, :], d_0, mask=own)
            if KIND != RNN:
                tl.store(source + H + unit[None, :], d_1, mask=own)
            if KIND == LSTM:
                tl.store(source + 2 * H + unit[None, :], d_2, mask=own)
            if KIND == LSTM or KIND == GRU_AFTER:
                tl.store(source + 3 * H + unit[None, :], d_3, mask=own)
            if KIND == GRU:
                _meet(counter, (2 * (back - first) + 2) * SPLIT, MEET)
            else:
                _meet(counter, (back - first + 1) * SPLIT, MEET)
            e_0, e_1, e_2, e_3 = _letters(source, present, KIND, H, PADDED, STREAM)
        else:
            e_0, e_1, e_2, e_3 = d_0.to(dtype), d_1.to(dtype), d_2.to(dtype), d_3.to(dtype)
        if KIND == RNN:
            tl.store(dgates + place * H + unit[None, :], d_0, mask=own & has)
        else:
            tl.store(dgates + place * (S * H) + four, left.to(dgates.dtype.element_ty), mask=own_four & has)
        if KIND == LSTM:
            now = past
        x, y, past, has, place = next_x, next_y, next_past, next_has, next_place
    if dbias is not None:
        sums = dbias + (tile * D + direction) * (S * H) + unit
        _leave(sums, db_0, first, unit < H)
        if KIND != RNN:
            _leave(sums + H, db_1, first, unit < H)
            _leave(sums + 2 * H, db_2, first, unit < H)
        if KIND == LSTM or KIND == GRU_AFTER:
            _leave(sums + 3 * H, db_3, first, unit < H)
    tl.store(dh0 + state, dh, mask=own)
    if KIND == LSTM:
        tl.store(dc0 + state, dc, mask=own)
