// The scan over time in one call: forward, and a backward written by hand.
//
// Legend: T steps, B batch, I input_size, H hidden_size, W lanes of a vector, R rows of a tile, S saved blocks.
//
// Everything rests on one register tile: R rows of the batch times four vectors of W outputs. Its accumulators stay in
// registers while k runs over the inputs and then over the hidden state; the gates are applied to them there, so that
// no pre-activation ever touches memory. Weights are packed once per call into panels, in the order in which the tile
// reads them. Each thread owns some rows of the batch from the first step to the last: threads never wait for each other.
//
// Vectors are GCC's and Clang's vector extension, as wide as the machine this is compiled on: AVX-512, AVX2, or 16 bytes.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#include <omp.h>
#if defined(__SSE__)
#include <immintrin.h>
#endif

namespace {

using Index = std::int64_t;

#if defined(__AVX512F__)
constexpr int kBytes = 64, kRows = 6;  // 24 accumulators of 32 registers
#elif defined(__AVX__)
constexpr int kBytes = 32, kRows = 3;  // 12 accumulators of 16 registers
#else
constexpr int kBytes = 16, kRows = 3;
#endif
constexpr int kSlots = 4;  // vectors per row of a tile
constexpr int kChunkBytes = kBytes == 64 ? 24 << 10 : 16 << 10;  // of weights, to stay in the first-level cache

template <typename F> struct VectorOf { typedef F type __attribute__((vector_size(kBytes))); };
template <typename F> using Vec = typename VectorOf<F>::type;
template <typename F> constexpr int kLanes = kBytes / static_cast<int>(sizeof(F));

template <typename F> inline Vec<F> load(const F* from) {
  Vec<F> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
template <typename F> inline void store(F* to, Vec<F> v) { std::memcpy(to, &v, sizeof v); }

// The last vector of a row may be narrower than a vector: lanes from n on are zero, and not written.
template <typename F> inline Vec<F> load(const F* from, Index n) {
  if (n >= kLanes<F>) return load(from);
  Vec<F> v = {};
  for (Index lane = 0; lane < n; ++lane) v[lane] = from[lane];
  return v;
}
template <typename F> inline void store(F* to, Vec<F> v, Index n) {
  if (n >= kLanes<F>) return store(to, v);
  for (Index lane = 0; lane < n; ++lane) to[lane] = v[lane];
}

// ---- sigmoid and tanh ------------------------------------------------------------------------------------------------

inline Vec<float> quotient(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
  Vec<float> guess = _mm512_rcp14_ps(b);  // 14 bits, and one Newton step makes them 28
  return a * (guess * (2.0f - b * guess));
#else
  return a / b;
#endif
}

// e^x - 1 = s (e^r - 1) + (s - 1), where s = 2^n and x = n log 2 + r with |r| <= log(2) / 2, for |x| <= 88. In both functions
// below a NaN stays one; rounding makes their relative errors some 2e-7, and neither ever leaves its range.
struct Exponential {
  Vec<float> scale, fraction;  // s and e^r - 1
};
inline Exponential exponential(Vec<float> x) {
  // Adding 1.5 * 2^23 rounds to an integer, which then stands in the lowest bits; 127 is the bias of an exponent.
  const Vec<float> shifted = x * 1.44269504f + (12582912.0f + 127.0f), n = shifted - (12582912.0f + 127.0f);
  const Vec<float> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // log 2 in two parts, of which the first is short
  Vec<float> p = r * 1.38825076e-3f + 8.36658048e-3f;  // (e^r - 1 - r) / r^2, minimax
  p = p * r + 4.16672018e-2f, p = p * r + 1.66665432e-1f, p = p * r + 4.99999981e-1f;
  return {(Vec<float>)((Vec<std::int32_t>)shifted << 23), p * (r * r) + r};
}
inline Vec<float> sigmoid(Vec<float> x) {
  x = x < -88.0f ? Vec<float>{} - 88.0f : x;  // 1 / (1 + e^88) is subnormal, and counts as zero
  x = x > 88.0f ? Vec<float>{} + 88.0f : x;
  const Exponential e = exponential(-x);
  return quotient(Vec<float>{} + 1.0f, e.scale * e.fraction + (e.scale + 1.0f));
}
// tanh |x| = (1 - e) / (1 + e), where e = exp(-2 |x|).
inline Vec<float> hyperbolic(Vec<float> x) {
  const Vec<std::int32_t> bits = (Vec<std::int32_t>)x, sign = bits & INT32_MIN;
  Vec<float> doubled = -2.0f * (Vec<float>)(bits ^ sign);
  doubled = doubled < -20.0f ? Vec<float>{} - 20.0f : doubled;  // where tanh is 1
  const Exponential e = exponential(doubled);
  const Vec<float> rest = (1.0f - e.scale) - e.scale * e.fraction;  // 1 - e
  return (Vec<float>)((Vec<std::int32_t>)quotient(rest, 2.0f - rest) | sign);
}

inline Vec<double> sigmoid(Vec<double> x) {
  for (int lane = 0; lane < kLanes<double>; ++lane) x[lane] = 1.0 / (1.0 + std::exp(-x[lane]));
  return x;
}
inline Vec<double> hyperbolic(Vec<double> x) {
  for (int lane = 0; lane < kLanes<double>; ++lane) x[lane] = std::tanh(x[lane]);
  return x;
}

// ---- the tile --------------------------------------------------------------------------------------------------------

// R rows of N vectors, kept in registers.
template <typename F, int R, int N> using Tile = Vec<F>[R][N];

// Which vectors of a tile a panel's weights belong to.
template <int... S> struct Slots {};
template <int... S> Slots<S...> slots_of(std::integer_sequence<int, S...>);
template <int N> using FirstSlots = decltype(slots_of(std::make_integer_sequence<int, N>{}));

// One side of a product: the values of each row, and the panel of weights that they meet. A panel holds, for every k, one
// vector for each of its slots.
template <typename F, typename S> struct Factor {
  const F* const* rows;
  Index count;
  const F* panel;
};

template <typename F> inline Vec<F> broadcast(F value) {
  Vec<F> v = Vec<F>{} + value;
#if defined(__AVX__)
  asm("" : "+v"(v));  // in a register, once: compilers like to load it again for every product
#endif
  return v;
}

// tile[r][s] += value(r, k) * panel[k][s] for the panel's slots and k < count.
template <typename F, int R, int N, int... S, typename Value>
inline void accumulate(Tile<F, R, N>& tile, Slots<S...>, const F* panel, Index count, Value&& value) {
  constexpr int width = sizeof...(S), slots[] = {S...};
  for (Index k = 0; k < count; ++k, panel += width * kLanes<F>) {
    if constexpr (R < width) {  // the fewer ones wait in registers
      Vec<F> values[R];
      for (int r = 0; r < R; ++r) values[r] = broadcast(value(r, k));
      for (int s = 0; s < width; ++s) {
        const Vec<F> weight = load(panel + s * kLanes<F>);
        for (int r = 0; r < R; ++r) tile[r][slots[s]] += values[r] * weight;
      }
    } else {
      Vec<F> weight[width];
      for (int s = 0; s < width; ++s) weight[s] = load(panel + s * kLanes<F>);
      for (int r = 0; r < R; ++r) {
        const Vec<F> v = broadcast(value(r, k));
        for (int s = 0; s < width; ++s) tile[r][slots[s]] += v * weight[s];
      }
    }
  }
}

// The same for rows from `begin` on of one side of a product, and from <= k < to.
template <typename F, int R, int N, int... S>
inline void accumulate(Tile<F, R, N>& tile, const Factor<F, Slots<S...>>& factor, Index begin, Index from, Index to) {
  const F* rows[R];
  for (int r = 0; r < R; ++r) rows[r] = factor.rows[begin + r] + from;
  const F* panel = factor.panel + from * static_cast<Index>(sizeof...(S)) * kLanes<F>;
  accumulate<F, R, N>(tile, Slots<S...>{}, panel, to - from, [&](int r, Index k) { return rows[r][k]; });
}

// Calls body(number as a compile-time constant), for a number from 1 to Most.
template <int Most, typename Body> inline void with_constant(Index number, Body&& body) {
  if (number == Most) return body(std::integral_constant<int, Most>{});
  if constexpr (Most > 1) with_constant<Most - 1>(number, body);
}

// Calls body(first row, number of rows as a compile-time constant) for tiles of at most Most rows that cover `count` evenly.
template <int Most, typename Body> inline void for_tiles(Index count, Body&& body) {
  const Index tiles = (count + Most - 1) / Most;
  for (Index i = 0; i < tiles; ++i) {
    const Index begin = count * i / tiles;
    with_constant<Most>(count * (i + 1) / tiles - begin, [&](auto size) { body(begin, size); });
  }
}

// sums (rows, N vectors) = start + the first product + the second. All rows pass a chunk of the weights that fits the
// first-level cache before the next chunk is touched.
template <int N, typename F, typename A, typename B>
void multiply(Index rows, const F* start, Factor<F, A> first, Factor<F, B> second, F* sums) {
  constexpr Index W = kLanes<F>, most = kChunkBytes / (N * kBytes);
  const Index total = first.count + second.count, chunks = (total + most - 1) / most;
  for (Index chunk = 0; chunk < chunks; ++chunk) {
    const Index from = total * chunk / chunks, to = total * (chunk + 1) / chunks;
    for_tiles<(N > 2 ? kRows : 2 * kRows)>(rows, [&](Index begin, auto size) {
      constexpr int R = decltype(size)::value;
      Tile<F, R, N> tile;
      F* own = sums + begin * N * W;
      for (int r = 0; r < R; ++r)
        for (int s = 0; s < N; ++s) tile[r][s] = load(chunk == 0 ? start + s * W : own + (r * N + s) * W);
      if (from < first.count) accumulate(tile, first, begin, from, std::min(to, first.count));
      if (to > first.count) accumulate(tile, second, begin, std::max<Index>(from - first.count, 0), to - first.count);
      for (int r = 0; r < R; ++r)
        for (int s = 0; s < N; ++s) store(own + (r * N + s) * W, tile[r][s]);
    });
  }
}

// Memory aligned to vectors, zeroed.
template <typename F> class Buffer {
 public:
  explicit Buffer(Index size) : raw_(size * sizeof(F) + kBytes, 0) {
    const auto address = reinterpret_cast<std::uintptr_t>(raw_.data());
    data_ = reinterpret_cast<F*>((address + kBytes - 1) / kBytes * kBytes);
  }
  F* operator+(Index offset) { return data_ + offset; }

 private:
  std::vector<char> raw_;
  F* data_;
};

// ---- weights in the order in which tiles read them -------------------------------------------------------------------

// Slot s of a panel is the W rows of `weight` (rows, count) from starts[s] on, of which widths[s] exist.
template <int N, typename F>
void pack_rows(F* panel, const F* weight, Index count, const Index (&starts)[N], const Index (&widths)[N]) {
  for (int s = 0; s < N; ++s)
    for (Index lane = 0; lane < std::min<Index>(widths[s], kLanes<F>); ++lane) {
      const F* row = weight + (starts[s] + lane) * count;
      F* to = panel + s * kLanes<F> + lane;
      for (Index k = 0; k < count; ++k) to[k * N * kLanes<F>] = row[k];
    }
}

// A product's right-hand side: the columns of `weight` (count, columns) in panels of kSlots vectors, the last one narrower.
template <typename F> struct Columns {
  Index count, columns;
  Buffer<F> panels;

  Columns(const F* weight, Index count_, Index columns_)
      : count(count_), columns(columns_), panels(count * vectors() * kLanes<F>) {
    for (Index first = 0; first < vectors(); first += kSlots) {
      const Index slots = std::min<Index>(kSlots, vectors() - first), width = slots * kLanes<F>;
      const Index exist = std::min(width, columns - first * kLanes<F>);
      F* panel = panels + first * kLanes<F> * count;
      for (Index k = 0; k < count; ++k)
        std::memcpy(panel + k * width, weight + k * columns + first * kLanes<F>, exist * sizeof(F));
    }
  }
  Index vectors() const { return (columns + kLanes<F> - 1) / kLanes<F>; }
};

// finish(row, column, vector) for rows times the columns. A row's values are `head` of those at rows[i], then those at rest[i].
template <typename F, typename Finish>
void product(Index count, const F* const* rows, const F* const* rest, Columns<F>& right, Index head, F* sums,
             Finish&& finish) {
  alignas(kBytes) static const F zeros[kSlots * kLanes<F>] = {};
  for (Index first = 0; first < right.vectors(); first += kSlots) {
    const Index slots = std::min<Index>(kSlots, right.vectors() - first);
    const F* panel = right.panels + first * kLanes<F> * right.count;
    with_constant<kSlots>(slots, [&](auto number) {
      constexpr int N = decltype(number)::value;
      const Factor<F, FirstSlots<N>> a{rows, head, panel}, b{rest, right.count - head, panel + head * N * kLanes<F>};
      multiply<N>(count, zeros, a, b, sums);
    });
    for (Index i = 0; i < count; ++i)
      for (Index s = 0; s < slots; ++s)
        finish(i, (first + s) * kLanes<F>, load(sums + (i * slots + s) * kLanes<F>));
  }
}

// ---- the scan --------------------------------------------------------------------------------------------------------

enum Kind { kRNN, kLSTM, kGRU, kGRUAfter };

// What Python passes; a null pointer is something absent or not wanted. Sizes are in elements, arrays contiguous.
struct Problem {
  Index steps, batch, inputs, hidden, reverse, threads;
  const Index* lengths;                                        // (B)
  const void *x, *weight_ih, *weight_hh, *bias_ih, *bias_hh;   // (T, B, I), (G*H, I), (G*H, H), (G*H), (G*H)
  const void *h0, *c0;                                         // (B, H)
  void *out, *hn, *cn;                                         // (T, B, H), (B, H), (B, H)
  void *saved, *cells;                                         // (T, B, S*H), (T, B, H), for backward; an RNN needs none
  const void *dout, *dhn, *dcn;                                // as out, hn, cn
  void *dx, *dh0, *dc0, *dgates;                               // as x, h0, c0, (T, B, S*H)
  void *dweight_ih, *dweight_hh, *dbias;                       // as the weights, (S*H)
};

template <Kind K> constexpr int kSaved = K == kRNN ? 1 : 4;  // blocks of H per step in `saved`

// The rows of one thread, longest first, so that those still running are always the first ones.
struct Slice {
  std::vector<Index> rows;
  const Index* lengths;

  Slice(const Problem& p, int thread, int threads) : lengths(p.lengths) {
    std::vector<Index> order(p.batch);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) { return lengths[a] > lengths[b]; });
    if (p.batch > 0 && lengths[order.front()] == lengths[order.back()])  // neighbours in memory
      rows.assign(order.begin() + p.batch * thread / threads, order.begin() + p.batch * (thread + 1) / threads);
    else  // of every length a share
      for (Index i = thread; i < p.batch; i += threads) rows.push_back(order[i]);
  }
  Index size() const { return static_cast<Index>(rows.size()); }
  Index running(Index t) const {
    return std::partition_point(rows.begin(), rows.end(), [&](Index row) { return lengths[row] > t; }) - rows.begin();
  }
};

template <typename F, Kind K> struct Forward {
  const Problem& p;
  const Index H = p.hidden, I = p.inputs, W = kLanes<F>, blocks = (H + W - 1) / W, padded = blocks * W;
  // Which panels: their slots are gates of one block of W units, or blocks of one gate.
  static constexpr int kBlocksPerPanel = K == kRNN ? 4 : K == kGRU ? 2 : 1;
  static constexpr int kInner = K == kGRUAfter ? 3 : 4;  // slots that a panel's weights have; the tile always has four
  using XSlots = std::conditional_t<K == kGRUAfter, Slots<0, 1, 2>, Slots<0, 1, 2, 3>>;
  using HSlots = std::conditional_t<K == kGRUAfter, Slots<0, 1, 3>, Slots<0, 1, 2, 3>>;
  const Index panels = (blocks + kBlocksPerPanel - 1) / kBlocksPerPanel;
  const Index candidates = K == kGRU ? (blocks + 3) / 4 : 0;  // the GRU's second round of panels, of four blocks
  Buffer<F> packed_x{panels * I * kInner * W}, packed_h{panels * H * kInner * W}, bias{panels * kSlots * W};
  Buffer<F> candidate_x{candidates * I * 4 * W}, candidate_h{candidates * H * 4 * W}, candidate_bias{candidates * 4 * W};

  explicit Forward(const Problem& problem) : p(problem) {
    const F *wx = static_cast<const F*>(p.weight_ih), *wh = static_cast<const F*>(p.weight_hh);
    const F *bx = static_cast<const F*>(p.bias_ih), *bh = static_cast<const F*>(p.bias_hh);
    for (Index panel = 0; panel < panels; ++panel) {
      Index starts[kInner], widths[kInner];
      for (int s = 0; s < kInner; ++s) {
        const Index block = K == kRNN ? panel * 4 + s : K == kGRU ? panel * 2 + s / 2 : panel;
        const Index gate = K == kRNN ? 0 : K == kGRU ? s % 2 : s;
        starts[s] = gate * H + block * W, widths[s] = H - block * W;
      }
      pack_rows<kInner>(packed_x + panel * I * kInner * W, wx, I, starts, widths);
      pack_rows<kInner>(packed_h + panel * H * kInner * W, wh, H, starts, widths);
      if (bx == nullptr) continue;
      for (int s = 0; s < kInner; ++s)
        for (Index lane = 0; lane < std::min(W, widths[s]); ++lane) {
          const bool apart = K == kGRUAfter && s == 2;  // the candidate's recurrent bias stands inside r * (…)
          *(bias + ((panel * kSlots + s) * W + lane)) = bx[starts[s] + lane] + (apart ? F(0) : bh[starts[s] + lane]);
          if (apart) *(bias + ((panel * kSlots + 3) * W + lane)) = bh[starts[s] + lane];
        }
    }
    for (Index panel = 0; panel < candidates; ++panel) {
      Index starts[4], widths[4];
      for (int s = 0; s < 4; ++s) starts[s] = 2 * H + (panel * 4 + s) * W, widths[s] = H - (panel * 4 + s) * W;
      pack_rows<4>(candidate_x + panel * I * 4 * W, wx, I, starts, widths);
      pack_rows<4>(candidate_h + panel * H * 4 * W, wh, H, starts, widths);
      for (int s = 0; s < 4 && bx != nullptr; ++s)
        for (Index lane = 0; lane < std::min(W, widths[s]); ++lane)
          *(candidate_bias + ((panel * 4 + s) * W + lane)) = bx[starts[s] + lane] + bh[starts[s] + lane];
    }
  }

  void run(const Slice& slice, int) {
    const Index B = p.batch, n = slice.size();
    const F* x = static_cast<const F*>(p.x);
    F *out = static_cast<F*>(p.out), *saved = static_cast<F*>(p.saved), *cells = static_cast<F*>(p.cells);
    Buffer<F> before(n * padded), after(n * padded), c((K == kLSTM) * n * padded);
    Buffer<F> gated((K == kGRU) * n * padded), update((K == kGRU) * n * padded), sums(n * kSlots * W);
    std::vector<const F*> inputs(n), past(n), visible_rows((K == kGRU) * n);
    for (std::size_t i = 0; i < visible_rows.size(); ++i) visible_rows[i] = gated + i * padded;
    for (Index i = 0; i < n; ++i) {
      const Index from = slice.rows[i] * H;
      std::memcpy(before + i * padded, static_cast<const F*>(p.h0) + from, H * sizeof(F));
      if (K == kLSTM) std::memcpy(c + i * padded, static_cast<const F*>(p.c0) + from, H * sizeof(F));
      std::memcpy(after + i * padded, before + i * padded, H * sizeof(F));
    }
    F *h = before + 0, *next = after + 0;
    for (Index step = 0; step < p.steps; ++step) {
      const Index t = p.reverse ? p.steps - 1 - step : step, running = slice.running(t);
      for (Index i = running; i < n; ++i) std::memset(out + (t * B + slice.rows[i]) * H, 0, H * sizeof(F));
      for (Index i = 0; i < running; ++i) {
        inputs[i] = x + (t * B + slice.rows[i]) * I;
        past[i] = h + i * padded;
      }
      for (Index panel = 0; panel < panels; ++panel) {
        const Factor<F, XSlots> from_x{inputs.data(), I, packed_x + panel * I * kInner * W};
        const Factor<F, HSlots> from_h{past.data(), H, packed_h + panel * H * kInner * W};
        multiply<kSlots>(running, bias + panel * kSlots * W, from_x, from_h, sums + 0);
        for (Index i = 0; i < running; ++i) {
          const Index row = t * B + slice.rows[i], own = i * padded;
          Vec<F> gate[kSlots];
          for (int s = 0; s < kSlots; ++s) gate[s] = load(sums + (i * kSlots + s) * W);
          for (int sub = 0; sub < kBlocksPerPanel; ++sub) {
            const Index unit = (panel * kBlocksPerPanel + sub) * W, width = std::min(W, H - unit);
            if (width <= 0) break;
            auto keep = [&](int block, Vec<F> v) {
              if (saved != nullptr) store(saved + (row * kSaved<K> + block) * H + unit, v, width);
            };
            auto finish = [&](Vec<F> v) {
              store(next + own + unit, v);
              store(out + row * H + unit, v, width);
            };
            if constexpr (K == kRNN) {
              finish(hyperbolic(gate[sub]));
            } else if constexpr (K == kLSTM) {
              const Vec<F> in = sigmoid(gate[0]), f = sigmoid(gate[1]), o = sigmoid(gate[3]);
              const Vec<F> g = hyperbolic(gate[2]), memory = f * load(c + own + unit) + in * g;
              store(c + own + unit, memory);
              if (saved != nullptr) store(cells + row * H + unit, memory, width);
              keep(0, in), keep(1, f), keep(2, g), keep(3, o);
              finish(o * hyperbolic(memory));
            } else if constexpr (K == kGRUAfter) {
              const Vec<F> reset = sigmoid(gate[0]), z = sigmoid(gate[1]);
              const Vec<F> candidate = hyperbolic(gate[2] + reset * gate[3]);
              keep(0, reset), keep(1, z), keep(2, candidate), keep(3, gate[3]);
              finish(z * (load(h + own + unit) - candidate) + candidate);
            } else {
              const Vec<F> reset = sigmoid(gate[2 * sub]), z = sigmoid(gate[2 * sub + 1]);
              const Vec<F> visible = reset * load(h + own + unit);
              store(gated + own + unit, visible);
              store(update + own + unit, z);
              keep(0, reset), keep(1, z), keep(3, visible);
            }
          }
        }
      }
      for (Index panel = 0; panel < candidates; ++panel) {
        const Factor<F, Slots<0, 1, 2, 3>> from_x{inputs.data(), I, candidate_x + panel * I * 4 * W};
        const Factor<F, Slots<0, 1, 2, 3>> from_h{visible_rows.data(), H, candidate_h + panel * H * 4 * W};
        multiply<kSlots>(running, candidate_bias + panel * 4 * W, from_x, from_h, sums + 0);
        for (Index i = 0; i < running; ++i)
          for (int s = 0; s < kSlots; ++s) {
            const Index unit = (panel * 4 + s) * W, width = std::min(W, H - unit);
            if (width <= 0) break;
            const Index row = t * B + slice.rows[i], own = i * padded + unit;
            const Vec<F> candidate = hyperbolic(load(sums + (i * kSlots + s) * W));
            const Vec<F> v = load(update + own) * (load(h + own) - candidate) + candidate;
            if (saved != nullptr) store(saved + (row * 4 + 2) * H + unit, candidate, width);
            store(next + own, v);
            store(out + row * H + unit, v, width);
          }
      }
      for (Index i = 0; i < running; ++i)  // rows that end here leave their state before it is overwritten
        if (p.reverse ? t == 0 : t == slice.lengths[slice.rows[i]] - 1) finish_row(slice.rows[i], next + i * padded, c, i);
      std::swap(h, next);
    }
    for (Index i = slice.running(0); i < n; ++i) finish_row(slice.rows[i], before + i * padded, c, i);  // no step at all
  }

  void finish_row(Index row, const F* h, Buffer<F>& c, Index i) {
    std::memcpy(static_cast<F*>(p.hn) + row * H, h, H * sizeof(F));
    if (K == kLSTM) std::memcpy(static_cast<F*>(p.cn) + row * H, c + i * padded, H * sizeof(F));
  }
};

template <typename F, Kind K> struct Backward {
  const Problem& p;
  const Index H = p.hidden, I = p.inputs, W = kLanes<F>, blocks = (H + W - 1) / W, padded = blocks * W;
  static constexpr Index S = kSaved<K>;
  const Index input_gates = (K == kRNN ? 1 : K == kLSTM ? 4 : 3) * H;
  const Index recurrent_gates = K == kGRU ? 2 * H : input_gates;
  Columns<F> to_h{static_cast<const F*>(p.weight_hh), recurrent_gates, H};
  Columns<F> to_gated{static_cast<const F*>(p.weight_hh) + 2 * H * H * (K == kGRU), K == kGRU ? H : 0, H};
  Columns<F> to_x{static_cast<const F*>(p.weight_ih), p.dx != nullptr ? input_gates : 0, I};

  explicit Backward(const Problem& problem) : p(problem) {}

  void run(const Slice& slice, int) {
    const Index B = p.batch, n = slice.size();
    F *dgates = static_cast<F*>(p.dgates), *dx = static_cast<F*>(p.dx);
    const F *out = static_cast<const F*>(p.out), *saved = K == kRNN ? out : static_cast<const F*>(p.saved);
    const F *cells = static_cast<const F*>(p.cells);
    const F *dout = static_cast<const F*>(p.dout);
    Buffer<F> dh(n * padded), dc((K == kLSTM) * n * padded), direct(n * padded), sums(n * kSlots * W);
    std::vector<const F*> gate_rows(n), further(n);
    for (Index i = 0; i < n; ++i) {
      const Index from = slice.rows[i] * H;
      std::memcpy(dh + i * padded, static_cast<const F*>(p.dhn) + from, H * sizeof(F));
      if (K == kLSTM) std::memcpy(dc + i * padded, static_cast<const F*>(p.dcn) + from, H * sizeof(F));
    }
    for (Index step = 0; step < p.steps; ++step) {
      const Index t = p.reverse ? step : p.steps - 1 - step, running = slice.running(t);
      for (Index i = running; i < n && dx != nullptr; ++i) std::memset(dx + (t * B + slice.rows[i]) * I, 0, I * sizeof(F));
      auto gates_of = [&](Index i) { return saved + (t * B + slice.rows[i]) * S * H; };
      auto dgates_of = [&](Index i) { return dgates + (t * B + slice.rows[i]) * S * H; };
      for (Index i = 0; i < running; ++i) {
        const Index row = t * B + slice.rows[i];
        const bool first = p.reverse ? t == slice.lengths[slice.rows[i]] - 1 : t == 0;
        const Index before = p.reverse ? row + B : row - B;
        const F* past_h = first ? static_cast<const F*>(p.h0) + slice.rows[i] * H : out + before * H;
        const F* past_c = first ? static_cast<const F*>(p.c0) + slice.rows[i] * H : cells + before * H;
        const F* gates = gates_of(i);
        F* into = dgates_of(i);
        for (Index unit = 0; unit < H; unit += W) {
          const Index own = i * padded + unit, width = std::min(W, H - unit);
          auto block = [&](int b) { return load(gates + b * H + unit, width); };
          auto leave = [&](int b, Vec<F> v) { store(into + b * H + unit, v, width); };
          const Vec<F> d = load(dh + own) + load(dout + row * H + unit, width);
          if constexpr (K == kRNN) {
            const Vec<F> y = load(out + row * H + unit, width);
            leave(0, d * (F(1) - y * y));
          } else if constexpr (K == kLSTM) {
            const Vec<F> in = block(0), forget = block(1), g = block(2), o = block(3);
            const Vec<F> squashed = hyperbolic(load(cells + row * H + unit, width));
            const Vec<F> dmemory = load(dc + own) + d * o * (F(1) - squashed * squashed);
            leave(0, dmemory * g * in * (F(1) - in));
            leave(1, dmemory * load(past_c + unit, width) * forget * (F(1) - forget));
            leave(2, dmemory * in * (F(1) - g * g));
            leave(3, d * squashed * o * (F(1) - o));
            store(dc + own, dmemory * forget);
          } else {
            const Vec<F> reset = block(0), z = block(1), candidate = block(2);
            const Vec<F> dcandidate = d * (F(1) - z) * (F(1) - candidate * candidate);
            leave(1, d * (load(past_h + unit, width) - candidate) * z * (F(1) - z));
            leave(2, dcandidate);
            store(direct + own, d * z);
            if constexpr (K == kGRUAfter) {
              leave(0, dcandidate * block(3) * reset * (F(1) - reset));
              leave(3, dcandidate * reset);
            }
          }
        }
      }
      for (Index i = 0; i < running; ++i) gate_rows[i] = dgates_of(i), further[i] = dgates_of(i) + (K == kGRUAfter ? 3 : 2) * H;
      if constexpr (K == kGRU)  // through (r * h) U: to the reset gate and to h
        product<F>(running, further.data(), nullptr, to_gated, H, sums + 0, [&](Index i, Index unit, Vec<F> v) {
          const Index own = i * padded + unit, width = std::min(W, H - unit), batch_row = slice.rows[i];
          const bool first = p.reverse ? t == slice.lengths[batch_row] - 1 : t == 0;
          const Index row = t * B + batch_row;
          const F* past = first ? static_cast<const F*>(p.h0) + batch_row * H : out + (p.reverse ? row + B : row - B) * H;
          const Vec<F> reset = load(gates_of(i) + unit, width);
          store(direct + own, load(direct + own) + v * reset);
          store(dgates_of(i) + unit, v * load(past + unit, width) * reset * (F(1) - reset), width);
        });
      if (dx != nullptr)
        product<F>(running, gate_rows.data(), nullptr, to_x, input_gates, sums + 0, [&](Index i, Index column, Vec<F> v) {
          store(dx + (t * B + slice.rows[i]) * I + column, v, std::min(W, I - column));
        });
      const Index head = K == kGRUAfter ? 2 * H : recurrent_gates;  // then, past the candidate's, the last block
      product<F>(running, gate_rows.data(), further.data(), to_h, head, sums + 0, [&](Index i, Index unit, Vec<F> v) {
        const Index own = i * padded + unit;
        store(dh + own, K == kGRU || K == kGRUAfter ? v + load(direct + own) : v);
      });
    }
    for (Index i = 0; i < n; ++i) {
      std::memcpy(static_cast<F*>(p.dh0) + slice.rows[i] * H, dh + i * padded, H * sizeof(F));
      if (K == kLSTM) std::memcpy(static_cast<F*>(p.dc0) + slice.rows[i] * H, dc + i * padded, H * sizeof(F));
    }
  }
};

// The gradients of weights and biases: those of the gates times what the gates had read, summed over all rows of all steps.
// Threads share the entries of the result, not the rows: none has sums of its own for all of it, and no sum depends on how
// many threads there are.
template <typename F, Kind K> struct Weights {
  const Problem& p;
  const Index H = p.hidden, I = p.inputs;
  static constexpr Index S = kSaved<K>, W = kLanes<F>, kPanel = kSlots * W;
  static constexpr Index kMost = kChunkBytes / (kSlots * kBytes);  // rows at a time, so that their gates' gradients stay cached

  enum Read { kInput, kPast, kVisible, kOne };  // x, the state before, what a GRU's reset gate left of it (in `saved`), 1
  struct Product {
    Index first, count;  // columns of `dgates`
    Read read;
    Index columns;  // of what is read
    F* into;        // (count, columns)
  };
  // What one thread does of a product: a panel of up to kSlots vectors of gates, by some columns.
  struct Part {
    const Product* product;
    Index first, count, left, columns;
    F* sums;  // (columns, vectors * W)
    Index vectors() const { return (count + W - 1) / W; }
  };
  std::vector<Product> products;
  std::vector<Index> rows;      // of (T, B), those that aren't padding
  std::vector<const F*> past;   // and the state before each

  explicit Weights(const Problem& problem) : p(problem) {
    F *of_x = static_cast<F*>(p.dweight_ih), *of_h = static_cast<F*>(p.dweight_hh);
    constexpr bool gru = K == kGRU || K == kGRUAfter;
    products.push_back({0, (K == kGRU ? 3 : S) * H, kOne, 1, static_cast<F*>(p.dbias)});
    products.push_back({0, (gru ? 3 : S) * H, kInput, I, of_x});
    products.push_back({0, (gru ? 2 : S) * H, kPast, H, of_h});
    if (K == kGRU) products.push_back({2 * H, H, kVisible, H, of_h + 2 * H * H});
    if (K == kGRUAfter) products.push_back({3 * H, H, kPast, H, of_h + 2 * H * H});
    const F *h0 = static_cast<const F*>(p.h0), *out = static_cast<const F*>(p.out);
    for (Index t = 0; t < p.steps; ++t)
      for (Index b = 0; b < p.batch; ++b) {
        if (t >= p.lengths[b]) continue;
        const bool first = t == (p.reverse ? p.lengths[b] - 1 : 0);
        rows.push_back(t * p.batch + b);
        past.push_back(first ? h0 + b * H : out + (rows.back() + (p.reverse ? p.batch : -p.batch)) * H);
      }
  }

  void run(const Slice&, int thread) {
    Index total = 0, begin = 0;  // columns of all panels
    for (const Product& product : products) total += (product.count + kPanel - 1) / kPanel * product.columns;
    const Index threads = omp_get_num_threads(), from = total * thread / threads, to = total * (thread + 1) / threads;
    Buffer<F> sums((to - from) * kPanel), panel(kMost * kPanel);
    std::vector<Part> parts;
    for (const Product& product : products)
      for (Index first = 0; first < product.count; first += kPanel, begin += product.columns) {
        const Index left = std::max(from, begin), right = std::min(to, begin + product.columns);
        const Index count = std::min(kPanel, product.count - first);
        if (left < right) parts.push_back({&product, first, count, left - begin, right - left, sums + (left - from) * kPanel});
      }
    for (Index row = 0; row < static_cast<Index>(rows.size()); row += kMost)
      for (const Part& part : parts)
        with_constant<kSlots>(part.vectors(), [&](auto number) {
          add<decltype(number)::value>(part, row, std::min<Index>(kMost, rows.size() - row), panel + 0);
        });
    for (const Part& part : parts)
      for (Index gate = 0; gate < part.count; ++gate)
        for (Index column = 0; column < part.columns; ++column)
          part.product->into[(part.first + gate) * part.product->columns + part.left + column] =
              part.sums[column * part.vectors() * W + gate];
  }

  template <int N> void add(const Part& part, Index begin, Index count, F* panel) {
    const Product& product = *part.product;
    static const F one = 1;
    const F *dgates = static_cast<const F*>(p.dgates), *saved = static_cast<const F*>(p.saved);
    const F *x = static_cast<const F*>(p.x), *read[kMost];
    for (Index k = 0; k < count; ++k) {
      const Index row = rows[begin + k];
      std::memcpy(panel + k * N * W, dgates + row * S * H + product.first + part.first, part.count * sizeof(F));
      switch (product.read) {
        case kInput: read[k] = x + row * I; break;
        case kPast: read[k] = past[begin + k]; break;
        case kVisible: read[k] = saved + row * S * H + 3 * H; break;
        case kOne: read[k] = &one;
      }
    }
    for_tiles<(N > 2 ? kRows : 2 * kRows)>(part.columns, [&](Index column, auto size) {
      constexpr int R = decltype(size)::value;
      Tile<F, R, N> tile = {};  // added when it is complete: small terms aren't lost in large sums
      accumulate<F, R, N>(tile, FirstSlots<N>{}, panel, count,
                          [&](int r, Index k) { return read[k][part.left + column + r]; });
      F* sums = part.sums + column * N * W;
      for (int r = 0; r < R; ++r)
        for (int s = 0; s < N; ++s, sums += W) store(sums, load(sums) + tile[r][s]);
    });
  }
};

// Numbers too small for a full mantissa count as zero in a thread that holds one of these. Gradients fade to such numbers over
// a hundred steps, and processors compute with them many times slower: here, and in the products of what is left behind.
class NoSubnormals {
 public:
#if defined(__SSE__)
  NoSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }  // flush results, read as zero
  ~NoSubnormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#endif
};

// False: out of memory. Exceptions may leave neither a parallel region nor a C function.
template <typename Pass> bool run(const Problem& p) try {
  Pass pass(p);
  std::atomic<bool> complete{true};
#pragma omp parallel num_threads(static_cast<int>(p.threads))
  try {
    const NoSubnormals guard;
    pass.run(Slice(p, omp_get_thread_num(), omp_get_num_threads()), omp_get_thread_num());
  } catch (const std::bad_alloc&) {
    complete = false;
  }
  return complete;
} catch (const std::bad_alloc&) {
  return false;
}

template <template <typename, Kind> class Pass> bool dispatch(int kind, int doubles, const Problem& p) {
  switch (kind * 2 + doubles) {
    case kRNN * 2: return run<Pass<float, kRNN>>(p);
    case kRNN * 2 + 1: return run<Pass<double, kRNN>>(p);
    case kLSTM * 2: return run<Pass<float, kLSTM>>(p);
    case kLSTM * 2 + 1: return run<Pass<double, kLSTM>>(p);
    case kGRU * 2: return run<Pass<float, kGRU>>(p);
    case kGRU * 2 + 1: return run<Pass<double, kGRU>>(p);
    case kGRUAfter * 2: return run<Pass<float, kGRUAfter>>(p);
    case kGRUAfter * 2 + 1: return run<Pass<double, kGRUAfter>>(p);
  }
  return false;
}

}  // namespace

extern "C" bool scan_forward(int kind, int doubles, const Problem* p) { return dispatch<Forward>(kind, doubles, *p); }
extern "C" bool scan_backward(int kind, int doubles, const Problem* p) {
  return dispatch<Backward>(kind, doubles, *p) && dispatch<Weights>(kind, doubles, *p);
}
