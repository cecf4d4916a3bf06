// experts: each expert's gated MLP over its rows (grouped GEMM). Three passes with barriers between: gate and up; function
// and quantised copy; down. Work items are (expert, tiles, rows), taken in order, so that a weight is streamed once and
// experts without rows cost nothing. The products are linear.cpp's blocks: every format it has, and for one row the same
// bits whatever other rows its expert has (promise 1).
#include "gated.h"
#include "linear.h"
#include "routing.h"

namespace ridgeline::RL_ISA {
namespace {

constexpr int64_t CHUNK_ROWS = 192;  // as in linear.cpp

struct Segment {
  int32_t expert, begin, end;
};

struct Segments {
  int count = 0;
  Segment at[RL_MAX_EXPERTS];

  Segments(const Step& step, const RlInstr& in) {
    int32_t first[RL_MAX_EXPERTS + 1];
    segments(step, in, first);
    for (int e = 0; e < in.experts; e++)
      if (first[e + 1] > first[e]) at[count++] = Segment{e, first[e], first[e + 1]};
  }
};

// The matrix of one expert in a stack.
RlWeight of_expert(const RlWeight& stack, int expert, int experts) {
  RlWeight weight = stack;
  weight.bytes = stack.bytes / experts;
  weight.data = static_cast<const uint8_t*>(stack.data) + expert * weight.bytes;
  return weight;
}

int64_t tiles_of(const RlWeight& weight) { return (weight.rows + RL_TILE_ROWS - 1) / RL_TILE_ROWS; }

// in.parts stacks times the rows of `in`, side by side in `out`.
void multiply(Worker& worker, const Step& step, const RlInstr& in, const Segments& segments) {
  const int64_t tiles = tiles_of(in.weight[0]);  // gate and up are alike
  int64_t span = tiles * in.parts * segments.count / (worker.threads * 8) / 2 * 2;
  span = span < 2 ? 2 : span > 16 ? 16 : span;
  const int64_t spans = (tiles + span - 1) / span;
  int64_t before = 0;
  int s = 0;
  auto items = [&] { return spans * in.parts * ((segments.at[s].end - segments.at[s].begin + CHUNK_ROWS - 1) / CHUNK_ROWS); };
  for (int64_t ticket = take(worker);; ticket = take(worker)) {
    while (s < segments.count && ticket >= before + items()) {
      before += items();
      s++;
    }
    if (s == segments.count) return;
    const Segment& segment = segments.at[s];
    const int64_t item = ticket - before, part = item / spans % in.parts, tile = item % spans * span;
    const int64_t row = segment.begin + item / (spans * in.parts) * CHUNK_ROWS;
    const RlWeight weight = of_expert(in.weight[part], segment.expert, in.experts);
    linear_block(step, in, weight, part * in.weight[0].rows, {tile, tile + span < tiles ? tile + span : tiles},
                 {row, row + CHUNK_ROWS < segment.end ? row + CHUNK_ROWS : segment.end});
  }
}

}  // namespace

void experts(Worker& worker, const Step& step, const RlInstr& in) {
  const Segments segments(step, in);
  const int64_t rows = static_cast<int64_t>(step.batch->tokens) * in.chosen;
  const int64_t hidden = in.weight[0].rows, width = in.width_in / in.chosen;
  const bool is_integer = columns_in_block(in.weight[2].format) > 1;
  RlInstr first = in;  // gate and up
  first.parts = 2;
  first.in2 = -1;
  first.width_in = static_cast<int32_t>(width);
  first.width_out = static_cast<int32_t>(2 * hidden);
  first.out = in.work;
  multiply(worker, step, first, segments);
  barrier(worker);

  RlInstr last = first;  // down
  last.parts = 1;
  last.weight[0] = in.weight[2];
  last.width_in = static_cast<int32_t>(hidden);
  last.width_out = static_cast<int32_t>(width);
  last.in = in.work + round_up(rows * 2 * hidden * 4, 64);
  last.in_quant = last.in + round_up(rows * hidden * 4, 64);
  last.out = in.out;
  int64_t begin, end;
  share(rows, worker, begin, end);
  for (int s = 0; s < segments.count; s++) {
    const Segment& segment = segments.at[s];
    for (int64_t row = begin > segment.begin ? begin : segment.begin; row < end && row < segment.end; row++) {
      const float* gate = floats(step, first.out) + row * 2 * hidden;
      float* out = floats(step, last.in) + row * hidden;
      gate_row(gate, gate + hidden, out, hidden, in.activation);
      if (is_integer)
        quantise(out, 0, hidden, segment_row(step, last.in_quant, hidden, row, segment.begin, segment.end),
                 in.outlier);
    }
  }
  barrier(worker);
  multiply(worker, step, last, segments);
}

}  // namespace ridgeline::RL_ISA
