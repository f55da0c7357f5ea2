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
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include <omp.h>
#if defined(__AVX512F__)
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

typedef std::int32_t Ints __attribute__((vector_size(kBytes)));

inline Vec<float> reciprocal(Vec<float> x) {
#if defined(__AVX512F__)
  Vec<float> guess = _mm512_rcp14_ps(x);  // 14 bits, and one Newton step makes them 28
  return guess * (2.0f - x * guess);
#else
  return 1.0f / x;
#endif
}

// e^x = 2^n e^r with n = round(x / ln 2); e^r from the Cephes library's polynomial. Relative error below 2e-7.
inline Vec<float> exponential(Vec<float> x) {
  x = x < -87.0f ? Vec<float>{} - 87.0f : x;
  x = x > 88.0f ? Vec<float>{} + 88.0f : x;
  const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, found in the lowest bits
  Vec<float> shifted = x * 1.44269504f + shift;
  Vec<float> n = shifted - shift;
  Vec<float> r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vec<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  Ints bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 127) << 23;  // the exponent of 2^n; the shift drops the constant's own bits
  Vec<float> power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

inline Vec<float> sigmoid(Vec<float> x) { return reciprocal(1.0f + exponential(-x)); }
inline Vec<float> hyperbolic(Vec<float> x) { return 1.0f - 2.0f * reciprocal(1.0f + exponential(2.0f * x)); }

inline Vec<double> sigmoid(Vec<double> x) {
  for (int lane = 0; lane < kLanes<double>; ++lane) x[lane] = 1.0 / (1.0 + std::exp(-x[lane]));
  return x;
}
inline Vec<double> hyperbolic(Vec<double> x) {
  for (int lane = 0; lane < kLanes<double>; ++lane) x[lane] = std::tanh(x[lane]);
  return x;
}

// ---- the tile --------------------------------------------------------------------------------------------------------

template <typename F, int R> using Tile = Vec<F>[R][kSlots];

// tile[r][s] += a[r][k] * panel[k][s] for the slots S and all k. A panel holds one vector for every k and slot.
template <int... S, typename F, int R>
inline void accumulate(Tile<F, R>& tile, const F* const (&a)[R], Index count, const F* panel) {
  constexpr int width = sizeof...(S);
  for (Index k = 0; k < count; ++k, panel += width * kLanes<F>) {
    Vec<F> weights[width];
    for (int s = 0; s < width; ++s) weights[s] = load(panel + s * kLanes<F>);
    for (int r = 0; r < R; ++r) {
      Vec<F> value = Vec<F>{} + a[r][k];
#if defined(__AVX__)
      asm("" : "+v"(value));  // one broadcast for all slots, not one load each
#endif
      int s = 0;
      ((tile[r][S] += value * weights[s++]), ...);
    }
  }
}

// Calls body(first row, number of rows as a compile-time constant) for tiles that cover `count` rows evenly.
template <typename Body> inline void for_tiles(Index count, Body&& body) {
  const Index tiles = (count + kRows - 1) / kRows;
  for (Index i = 0; i < tiles; ++i) {
    const Index begin = count * i / tiles, rows = count * (i + 1) / tiles - begin;
    switch (rows) {
      case 1: body(begin, std::integral_constant<int, 1>{}); break;
      case 2: body(begin, std::integral_constant<int, 2>{}); break;
      case 3: body(begin, std::integral_constant<int, 3>{}); break;
      case 4: body(begin, std::integral_constant<int, std::min(4, kRows)>{}); break;
      case 5: body(begin, std::integral_constant<int, std::min(5, kRows)>{}); break;
      case 6: body(begin, std::integral_constant<int, std::min(6, kRows)>{}); break;
    }
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

// finish(row, column, vector) for all of a (rows, count) times the columns. a(row) points to a row's values, of which the
// first `head` are followed, `skip` further on, by the rest.
template <typename F, typename Rows, typename Finish>
void product(Index rows, Rows&& a, Columns<F>& right, Index head, Index skip, Finish&& finish) {
  for (Index first = 0; first < right.vectors(); first += kSlots) {
    const Index slots = std::min<Index>(kSlots, right.vectors() - first);
    const F* panel = right.panels + first * kLanes<F> * right.count;
    const F* rest = panel + head * slots * kLanes<F>;
    for_tiles(rows, [&](Index begin, auto size) {
      constexpr int R = decltype(size)::value;
      Tile<F, R> tile = {};
      const F *start[R], *further[R];
      for (int r = 0; r < R; ++r) start[r] = a(begin + r), further[r] = start[r] + head + skip;
      auto run = [&](auto... slot) {
        accumulate<decltype(slot)::value...>(tile, start, head, panel);
        if (right.count > head) accumulate<decltype(slot)::value...>(tile, further, right.count - head, rest);
      };
      using std::integral_constant;
      const integral_constant<int, 0> s0; const integral_constant<int, 1> s1;
      const integral_constant<int, 2> s2; const integral_constant<int, 3> s3;
      if (slots == 1) run(s0);
      else if (slots == 2) run(s0, s1);
      else if (slots == 3) run(s0, s1, s2);
      else run(s0, s1, s2, s3);
      for (int r = 0; r < R; ++r)
        for (Index s = 0; s < slots; ++s) finish(begin + r, (first + s) * kLanes<F>, tile[r][s]);
    });
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
  void *saved, *cells;                                         // (T, B, S*H), (T, B, H), for backward
  const void *dout, *dhn, *dcn;                                // as out, hn, cn
  void *dx, *dh0, *dc0;                                        // as x, h0, c0; the gates' gradients replace `saved`
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

  void run(const Slice& slice) {
    const Index B = p.batch, n = slice.size();
    const F* x = static_cast<const F*>(p.x);
    F *out = static_cast<F*>(p.out), *saved = static_cast<F*>(p.saved), *cells = static_cast<F*>(p.cells);
    Buffer<F> before(n * padded), after(n * padded), c((K == kLSTM) * n * padded);
    Buffer<F> gated((K == kGRU) * n * padded), update((K == kGRU) * n * padded);
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
      for (Index panel = 0; panel < panels; ++panel)
        for_tiles(running, [&](Index begin, auto size) {
          constexpr int R = decltype(size)::value;
          Tile<F, R> tile;
          const F *inputs[R], *past[R];
          for (int r = 0; r < R; ++r) {
            inputs[r] = x + (t * B + slice.rows[begin + r]) * I, past[r] = h + (begin + r) * padded;
            for (int s = 0; s < kSlots; ++s) tile[r][s] = load(bias + (panel * kSlots + s) * W);
          }
          if constexpr (K == kGRUAfter) {
            accumulate<0, 1, 2>(tile, inputs, I, packed_x + panel * I * kInner * W);
            accumulate<0, 1, 3>(tile, past, H, packed_h + panel * H * kInner * W);
          } else {
            accumulate<0, 1, 2, 3>(tile, inputs, I, packed_x + panel * I * kInner * W);
            accumulate<0, 1, 2, 3>(tile, past, H, packed_h + panel * H * kInner * W);
          }
          for (int r = 0; r < R; ++r) {
            const Index row = t * B + slice.rows[begin + r], own = (begin + r) * padded;
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
                finish(hyperbolic(tile[r][sub]));
              } else if constexpr (K == kLSTM) {
                const Vec<F> i = sigmoid(tile[r][0]), f = sigmoid(tile[r][1]), o = sigmoid(tile[r][3]);
                const Vec<F> g = hyperbolic(tile[r][2]), memory = f * load(c + own + unit) + i * g;
                store(c + own + unit, memory);
                if (saved != nullptr) store(cells + row * H + unit, memory, width);
                keep(0, i), keep(1, f), keep(2, g), keep(3, o);
                finish(o * hyperbolic(memory));
              } else if constexpr (K == kGRUAfter) {
                const Vec<F> reset = sigmoid(tile[r][0]), z = sigmoid(tile[r][1]);
                const Vec<F> candidate = hyperbolic(tile[r][2] + reset * tile[r][3]);
                keep(0, reset), keep(1, z), keep(2, candidate), keep(3, tile[r][3]);
                finish(z * (load(h + own + unit) - candidate) + candidate);
              } else {
                const Vec<F> reset = sigmoid(tile[r][2 * sub]), z = sigmoid(tile[r][2 * sub + 1]);
                const Vec<F> visible = reset * load(h + own + unit);
                store(gated + own + unit, visible);
                store(update + own + unit, z);
                keep(0, reset), keep(1, z), keep(3, visible);
              }
            }
          }
        });
      for (Index panel = 0; panel < candidates; ++panel)
        for_tiles(running, [&](Index begin, auto size) {
          constexpr int R = decltype(size)::value;
          Tile<F, R> tile;
          const F *inputs[R], *past[R];
          for (int r = 0; r < R; ++r) {
            inputs[r] = x + (t * B + slice.rows[begin + r]) * I, past[r] = gated + (begin + r) * padded;
            for (int s = 0; s < kSlots; ++s) tile[r][s] = load(candidate_bias + (panel * 4 + s) * W);
          }
          accumulate<0, 1, 2, 3>(tile, inputs, I, candidate_x + panel * I * 4 * W);
          accumulate<0, 1, 2, 3>(tile, past, H, candidate_h + panel * H * 4 * W);
          for (int r = 0; r < R; ++r)
            for (int s = 0; s < kSlots; ++s) {
              const Index unit = (panel * 4 + s) * W, width = std::min(W, H - unit);
              if (width <= 0) break;
              const Index row = t * B + slice.rows[begin + r], own = (begin + r) * padded + unit;
              const Vec<F> candidate = hyperbolic(tile[r][s]);
              const Vec<F> v = load(update + own) * (load(h + own) - candidate) + candidate;
              if (saved != nullptr) store(saved + (row * 4 + 2) * H + unit, candidate, width);
              store(next + own, v);
              store(out + row * H + unit, v, width);
            }
        });
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

  void run(const Slice& slice) {
    const Index B = p.batch, n = slice.size();
    F *saved = static_cast<F*>(p.saved), *dx = static_cast<F*>(p.dx);
    const F *out = static_cast<const F*>(p.out), *cells = static_cast<const F*>(p.cells);
    const F *dout = static_cast<const F*>(p.dout);
    Buffer<F> dh(n * padded), dc((K == kLSTM) * n * padded), direct(n * padded);
    for (Index i = 0; i < n; ++i) {
      const Index from = slice.rows[i] * H;
      std::memcpy(dh + i * padded, static_cast<const F*>(p.dhn) + from, H * sizeof(F));
      if (K == kLSTM) std::memcpy(dc + i * padded, static_cast<const F*>(p.dcn) + from, H * sizeof(F));
    }
    for (Index step = 0; step < p.steps; ++step) {
      const Index t = p.reverse ? step : p.steps - 1 - step, running = slice.running(t);
      for (Index i = running; i < n; ++i) {
        const Index row = t * B + slice.rows[i];
        std::memset(saved + row * S * H, 0, S * H * sizeof(F));
        if (dx != nullptr) std::memset(dx + row * I, 0, I * sizeof(F));
      }
      auto gates_of = [&](Index i) { return saved + (t * B + slice.rows[i]) * S * H; };
      for (Index i = 0; i < running; ++i) {
        const Index row = t * B + slice.rows[i];
        const bool first = p.reverse ? t == slice.lengths[slice.rows[i]] - 1 : t == 0;
        const Index before = p.reverse ? row + B : row - B;
        const F* past_h = first ? static_cast<const F*>(p.h0) + slice.rows[i] * H : out + before * H;
        const F* past_c = first ? static_cast<const F*>(p.c0) + slice.rows[i] * H : cells + before * H;
        F* gates = gates_of(i);
        for (Index unit = 0; unit < H; unit += W) {
          const Index own = i * padded + unit, width = std::min(W, H - unit);
          auto block = [&](int b) { return load(gates + b * H + unit, width); };
          auto replace = [&](int b, Vec<F> v) { store(gates + b * H + unit, v, width); };
          const Vec<F> d = load(dh + own) + load(dout + row * H + unit, width);
          if constexpr (K == kRNN) {
            const Vec<F> y = load(out + row * H + unit, width);
            replace(0, d * (F(1) - y * y));
          } else if constexpr (K == kLSTM) {
            const Vec<F> in = block(0), forget = block(1), g = block(2), o = block(3);
            const Vec<F> squashed = hyperbolic(load(cells + row * H + unit, width));
            const Vec<F> dmemory = load(dc + own) + d * o * (F(1) - squashed * squashed);
            replace(0, dmemory * g * in * (F(1) - in));
            replace(1, dmemory * load(past_c + unit, width) * forget * (F(1) - forget));
            replace(2, dmemory * in * (F(1) - g * g));
            replace(3, d * squashed * o * (F(1) - o));
            store(dc + own, dmemory * forget);
          } else {
            const Vec<F> reset = block(0), z = block(1), candidate = block(2);
            const Vec<F> dcandidate = d * (F(1) - z) * (F(1) - candidate * candidate);
            replace(1, d * (load(past_h + unit, width) - candidate) * z * (F(1) - z));
            replace(2, dcandidate);
            store(direct + own, d * z);
            if constexpr (K == kGRUAfter) {
              replace(0, dcandidate * block(3) * reset * (F(1) - reset));
              replace(3, dcandidate * reset);
            }
          }
        }
      }
      if constexpr (K == kGRU)  // through (r * h) U: to the reset gate and to h; `saved` keeps r * h for the weights
        product<F>(running, [&](Index i) { return gates_of(i) + 2 * H; }, to_gated, H, 0, [&](Index i, Index unit, Vec<F> v) {
          const Index own = i * padded + unit, width = std::min(W, H - unit), batch_row = slice.rows[i];
          const bool first = p.reverse ? t == slice.lengths[batch_row] - 1 : t == 0;
          const Index row = t * B + batch_row;
          const F* past = first ? static_cast<const F*>(p.h0) + batch_row * H : out + (p.reverse ? row + B : row - B) * H;
          const Vec<F> reset = load(gates_of(i) + unit, width);
          store(direct + own, load(direct + own) + v * reset);
          store(gates_of(i) + unit, v * load(past + unit, width) * reset * (F(1) - reset), width);
        });
      if (dx != nullptr)
        product<F>(running, gates_of, to_x, input_gates, 0, [&](Index i, Index column, Vec<F> v) {
          store(dx + (t * B + slice.rows[i]) * I + column, v, std::min(W, I - column));
        });
      const Index head = K == kGRUAfter ? 2 * H : recurrent_gates, skip = K == kGRUAfter ? H : 0;
      product<F>(running, gates_of, to_h, head, skip, [&](Index i, Index unit, Vec<F> v) {
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

template <typename Pass> void run(const Problem& p) {
  Pass pass(p);
#pragma omp parallel num_threads(static_cast<int>(p.threads))
  pass.run(Slice(p, omp_get_thread_num(), omp_get_num_threads()));
}

template <template <typename, Kind> class Pass> void dispatch(int kind, int doubles, const Problem& p) {
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
}

}  // namespace

extern "C" void scan_forward(int kind, int doubles, const Problem* p) { dispatch<Forward>(kind, doubles, *p); }
extern "C" void scan_backward(int kind, int doubles, const Problem* p) { dispatch<Backward>(kind, doubles, *p); }
