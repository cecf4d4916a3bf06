// conv: every channel convolved with its own last `taps` inputs, then silu; the last taps - 1 inputs stay in the state.
// Idea: a sequence and a block of channels is one piece of work, its tokens in order, so that nobody else reads or writes
// its state, and the bits of a token do not depend on what else the step holds.
#include "vec.h"

namespace ridgeline::RL_ISA {
namespace {

constexpr int64_t BLOCK = 64;  // channels of a piece: four cache lines of a row

struct Conv {
  const float* x;      // [count][stride], the channels of this instruction first
  const float* taps;   // [taps][channels], the newest input last
  const float* bias;   // [channels] or NULL
  float* state;        // [taps - 1][channels], the oldest input first
  float* out;          // [count][channels]
  int64_t stride, channels, count;
  int taps_count;
  bool is_first;       // the state is that of a sequence without past: zeros, whatever the memory holds
};

// Input `at` of the sequence as this step sees it; below 0: from the state. `n` < LANES: a tail.
RL_INLINE F input(const Conv& c, int64_t at, int64_t channel, int64_t n) {
  if (at < 0 && c.is_first) return splat(0.0f);
  const float* from = at < 0 ? c.state + (at + c.taps_count - 1) * c.channels : c.x + at * c.stride;
  return n < LANES ? load_part(from + channel, static_cast<int>(n)) : load(from + channel);
}

RL_INLINE void lanes(const Conv& c, int64_t channel, int64_t n) {
  auto put = [n](float* to, F value) { n < LANES ? store_part(to, value, static_cast<int>(n)) : store(to, value); };
  auto get = [n](const float* from) { return n < LANES ? load_part(from, static_cast<int>(n)) : load(from); };
  for (int64_t t = 0; t < c.count; t++) {
    F sum = c.bias ? get(c.bias + channel) : splat(0.0f);
    for (int j = 0; j < c.taps_count; j++)
      sum = fma(get(c.taps + j * c.channels + channel), input(c, t - (c.taps_count - 1) + j, channel, n), sum);
    put(c.out + t * c.channels + channel, sum / (splat(1.0f) + exp(splat(0.0f) - sum)));
  }
  for (int i = 0; i < c.taps_count - 1; i++)  // upwards: what is read lies behind what is written
    put(c.state + i * c.channels + channel, input(c, c.count - (c.taps_count - 1) + i, channel, n));
}

}  // namespace

void conv(Worker& worker, const Step& step, const RlInstr& in) {
  const RlBatch& batch = *step.batch;
  const int64_t channels = in.width_out, blocks = (channels + BLOCK - 1) / BLOCK;
  for (int64_t item = take(worker); item < batch.sequences * blocks; item = take(worker)) {
    const int64_t s = item / blocks, first = item % blocks * BLOCK, begin = batch.first_token[s];
    const int64_t last = first + BLOCK < channels ? first + BLOCK : channels;
    if (begin == batch.first_token[s + 1]) continue;
    const Conv c{floats(step, in.in) + begin * in.width_in + in.heads * in.head_dim,
                 static_cast<const float*>(in.weight[0].data), in.weight[0].bias, state_of(step, in, s),
                 floats(step, in.out) + begin * channels, in.width_in, channels, batch.first_token[s + 1] - begin,
                 in.taps, batch.positions[begin] == 0};
    for (int64_t channel = first; channel < last; channel += LANES) lanes(c, channel, last - channel);
  }
}

}  // namespace ridgeline::RL_ISA
