// linear: out[:, part] = in . weight[part]^T + bias + residual, on the stored bits.
// Idea: a block of R rows (tokens) x T units (LANES weight rows each) keeps its sums in registers while the packed tile
// streams by once. Promise 1: for one output the sequence of operations over k is the same in every R x T variant
//   e4m3, e5m2: two sums for each scale, then sum = fma(scale, even + odd, sum)
//   f32, f16, bf16:  two sums (even k, odd k), added at the end
//   q8_0, q4_1: per group of 32 the exact integer 128 * (dot of the high plane) + (dot of the low one), rounded once as a
//               float x, then sum = fma(d_w, d_a * x, sum); q4_1 adds fma(m_w, d_a * sum q, .); likewise q4_0, q5_0 (whose
//               dot is of the signed weights) and q4_k (d_w = d * scale, m_w = -dmin * minimum); q6_k has a dot and a d_w
//               for each sixteen; int8, int4 (with zeros) are q8_0 and q4_0 (q4_1, m_w = -d_w * zero) under scales that
//               last longer
// so neither the number of rows, nor threads, nor tiles beside it can change a bit; nor does a low plane of zeros, which is
// multiplied only where another row of the panel has one (dots.h).
// A block of few rows streams one tile and prefetches it (the weights come from memory once: one stream at a time beats
// two, KERNELS.md §2). Many rows: a panel stays in the first cache while tiles stream from the second.
// Measured numbers: docs/findings/cpu-linear.md (command: bench/linear.py).
#include "floats.h"
#include "integers.h"
#include "linear.h"

namespace ridgeline::RL_ISA {
namespace {

constexpr int UNITS_IN_TILE = RL_TILE_ROWS / LANES;
constexpr int FLOAT_ROWS = RL_LEVEL == 2 ? 6 : 4;  // with two units (below) 24 sums in 32 registers
constexpr int64_t CHUNK_ROWS = 192;  // rows of a work item: a multiple of PANEL; their activations stay in the second cache

// Units that a block of R rows computes at once: enough independent sums to hide latency, few enough for the registers.
template <int R>
constexpr int units() {
  constexpr int sums = RL_LEVEL == 2 ? 1 : RL_LEVEL == 1 ? 4 : 4;
  return R >= sums ? 1 : sums / R < UNITS_IN_TILE ? (sums / R) : UNITS_IN_TILE;
}

constexpr int rows_of(int kind) { return is_float8(kind) || is_plain(kind) ? FLOAT_ROWS : PANEL; }
constexpr int units_of_hot(int kind) { return RL_LEVEL == 2 && is_plain(kind) ? 2 : 1; }

// ---- blocks

struct Writes {
  float* out;
  const float* residual;  // nullptr: none; may be out
  int64_t stride;         // floats
};

template <int FORMAT, int R, int T, bool FETCH>
void block(const Reads& from, const Part& part, int64_t unit, const Writes& to) {
  const uint8_t* tile[T];
  int lane[T];
#pragma GCC unroll 12
  for (int t = 0; t < T; t++) {
    const int64_t row = (unit + t) * LANES;
    tile[t] = static_cast<const uint8_t*>(part.weight->data) + row / RL_TILE_ROWS * part.tile_bytes;
    lane[t] = static_cast<int>(row % RL_TILE_ROWS);
  }
  F result[R][T];
  if constexpr (FORMAT == RL_F32)
    dot_columns<float, R, T, FETCH>(from, tile, lane, result);
  else if constexpr (FORMAT == RL_F16)
    dot_columns<uint16_t, R, T, FETCH>(from, tile, lane, result);
  else if constexpr (FORMAT == RL_BF16)
    dot_bf16<R, T, FETCH>(from, tile, lane, result);
  else if constexpr (is_affine(FORMAT))
    dot_affine<FORMAT, R, T, FETCH>(from, part, unit, tile, lane, result);
  else if constexpr (is_float8(FORMAT))
    dot_float8<FORMAT, R, T, FETCH>(from, part, unit, tile, lane, result);
  else
    dot_groups<FORMAT, R, T, FETCH>(from, tile, lane, result);
#pragma GCC unroll 12
  for (int t = 0; t < T; t++) {
    const int64_t row = (unit + t) * LANES, left = part.weight->rows - row;
    if (left <= 0) break;
    const int n = left < LANES ? static_cast<int>(left) : LANES;
    F bias = {};
    if (part.weight->bias) bias = n < LANES ? load_part(part.weight->bias + row, n) : load(part.weight->bias + row);
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
      F y = result[r][t];
      const int64_t at = r * to.stride + part.column + row;
      if (part.weight->bias) y = y + bias;
      if (to.residual) y = y + (n < LANES ? load_part(to.residual + at, n) : load(to.residual + at));
      if (n < LANES)
        store_part(to.out + at, y, n);
      else
        store(to.out + at, y);
    }
  }
}

typedef void (*Block)(const Reads&, const Part&, int64_t unit, const Writes&);

// Blocks by format and number of rows; hot: for full panels whose tiles are in a cache already.
struct Blocks {
  Block at[RL_FORMAT_END][PANEL], hot[RL_FORMAT_END];
  int units[PANEL], hot_units[RL_FORMAT_END];

  constexpr Blocks() : at{}, hot{}, units{}, hot_units{} {
    fill_floats<1>();
    fill<1>();
    fill_hot<RL_Q8_0, RL_Q4_1, RL_Q4_0, RL_Q5_0, RL_Q4_K, RL_Q6_K, RL_INT8, RL_INT8_ZERO, RL_INT4, RL_INT4_ZERO>();
    fill_hot<RL_F32, RL_F16, RL_BF16, RL_E4M3, RL_E5M2>();
  }
  template <int R>
  constexpr void fill_floats() {
    fill_row<R, RL_F32, RL_F16, RL_BF16, RL_E4M3, RL_E5M2>();
    if constexpr (R < FLOAT_ROWS) fill_floats<R + 1>();
  }
  template <int R>
  constexpr void fill() {
    units[R - 1] = ridgeline::RL_ISA::units<R>();
    fill_row<R, RL_Q8_0, RL_Q4_1, RL_Q4_0, RL_Q5_0, RL_Q4_K, RL_Q6_K, RL_INT8, RL_INT8_ZERO, RL_INT4, RL_INT4_ZERO>();
    if constexpr (R < PANEL) fill<R + 1>();
  }
  template <int R, int... FORMATS>
  constexpr void fill_row() {
    ((at[FORMATS][R - 1] = block<FORMATS, R, ridgeline::RL_ISA::units<R>(), true>), ...);
  }
  template <int... FORMATS>
  constexpr void fill_hot() {
    ((hot[FORMATS] = block<FORMATS, rows_of(FORMATS), units_of_hot(FORMATS), false>), ...);
    ((hot_units[FORMATS] = units_of_hot(FORMATS)), ...);
  }
};
constexpr Blocks BLOCKS;

struct Linear {
  const Step& step;
  const RlInstr& in;
  Part parts[3];
  int64_t tiles, bytes, rows;

  Reads reads(int64_t row) const {
    return {in.in >= 0 ? floats(step, in.in) + row * in.width_in : nullptr,
            in.in_quant >= 0 ? panel_at(step, in.in_quant, in.width_in, row) : nullptr, in.width_in, in.width_in};
  }
  Writes writes(int64_t row) const {
    return {floats(step, in.out) + row * in.width_out,
            in.in2 >= 0 ? floats(step, in.in2) + row * in.width_out : nullptr, in.width_out};
  }
};

struct Rows {
  int64_t begin, end;
};

// Rows x tiles [first, last) of one part. The first panel brings the tiles from memory.
void run(const Linear& job, const Part& part, int64_t first, int64_t last, Rows rows) {
  const int kind = kind_of(part.weight->format), most = rows_of(kind), hot_units = BLOCKS.hot_units[kind];
  for (int64_t row = rows.begin; row < rows.end; row += most) {
    const int64_t count = rows.end - row < most ? rows.end - row : most;
    const Reads from = job.reads(row);
    const Writes to = job.writes(row);
    int64_t unit = first * UNITS_IN_TILE;
    const int64_t end = last * UNITS_IN_TILE;
    if (count == most && row > rows.begin)
      for (; unit + hot_units <= end; unit += hot_units) BLOCKS.hot[kind](from, part, unit, to);
    for (; unit < end; unit += BLOCKS.units[count - 1]) BLOCKS.at[kind][count - 1](from, part, unit, to);
  }
}

// Few rows: every thread streams one contiguous range of bytes, equal to within a tile.
void run_static(const Linear& job, const Worker& worker) {
  const int64_t begin = job.bytes * worker.thread / worker.threads;
  const int64_t end = job.bytes * (worker.thread + 1) / worker.threads;
  int64_t start = 0;
  for (int p = 0; p < job.in.parts; p++) {
    const Part& part = job.parts[p];
    const int64_t half = part.tile_bytes / 2;
    auto tile_at = [&](int64_t byte) {
      int64_t tile = (byte - start + half) / part.tile_bytes;
      return byte <= start ? 0 : tile > part.tiles ? part.tiles : tile;
    };
    run(job, part, tile_at(begin), worker.thread + 1 == worker.threads ? part.tiles : tile_at(end), {0, job.rows});
    start += part.tiles * part.tile_bytes;
  }
}

// Many rows: tickets of a few tiles x CHUNK_ROWS rows.
void run_dynamic(const Linear& job, Worker& worker) {
  int64_t step = job.tiles / (worker.threads * 8) / 2 * 2;
  step = step < 2 ? 2 : step > 16 ? 16 : step;
  for (int64_t ticket = take(worker);; ticket = take(worker)) {
    int64_t item = ticket;
    int p = 0;
    for (; p < job.in.parts; p++) {
      const int64_t items = (job.parts[p].tiles + step - 1) / step * ((job.rows + CHUNK_ROWS - 1) / CHUNK_ROWS);
      if (item < items) break;
      item -= items;
    }
    if (p == job.in.parts) return;
    const Part& part = job.parts[p];
    const int64_t spans = (part.tiles + step - 1) / step;
    const int64_t first = item % spans * step, begin = item / spans * CHUNK_ROWS;
    run(job, part, first, first + step < part.tiles ? first + step : part.tiles,
        {begin, begin + CHUNK_ROWS < job.rows ? begin + CHUNK_ROWS : job.rows});
  }
}

}  // namespace

void linear(Worker& worker, const Step& step, const RlInstr& in) {
  Linear job{step, in, {}, 0, 0, row_count(step, in)};
  int64_t column = 0;
  for (int p = 0; p < in.parts; p++) {
    const RlWeight& weight = in.weight[p];
    const int64_t tiles = (weight.rows + RL_TILE_ROWS - 1) / RL_TILE_ROWS;
    job.parts[p] = Part{&weight, tile_bytes(weight.format, weight.columns), tiles, column};
    job.tiles += tiles;
    job.bytes += tiles * job.parts[p].tile_bytes;
    column += weight.rows;
  }
  if (job.rows <= PANEL)
    run_static(job, worker);
  else
    run_dynamic(job, worker);
  if (in.out_quant < 0) return;
  barrier(worker);  // groups of 32 columns span tiles
  int64_t begin, end;
  share(job.rows, worker, begin, end);
  for (int64_t row = begin; row < end; row++) finish_row(step, in, row, floats(step, in.out) + row * in.width_out);
}

// For experts.cpp: tiles x rows of one matrix, read and written where `in` says, with the bits of `linear`. Panels of the
// quantised input begin at rows.begin.
void linear_block(const Step& step, const RlInstr& in, const RlWeight& weight, int64_t column, Range tiles, Range rows) {
  const Linear job{step, in, {}, 0, 0, 0};
  const int64_t count = (weight.rows + RL_TILE_ROWS - 1) / RL_TILE_ROWS;
  const Part part{&weight, tile_bytes(weight.format, weight.columns), count, column};
  run(job, part, tiles.begin, tiles.end, {rows.begin, rows.end});
}

}  // namespace ridgeline::RL_ISA
